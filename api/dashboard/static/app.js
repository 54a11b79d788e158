// Copy buttons, and a new plan whenever the form of a new job was redrawn.
(() => {
  "use strict";

  const prepare = (root) => {
    for (const button of root.querySelectorAll("button[data-copy]")) {
      if (navigator.clipboard) button.hidden = false;
    }
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  document.addEventListener("htmx:after:swap", (event) => {
    const target = event.detail?.ctx?.target;
    if (target?.id === "draft") htmx.trigger("#plan", "replan");
  });

  prepare(document);
})();
