// Copy buttons; a new plan whenever the form of a job was redrawn; what a plan finds wrong, said at the fields too;
// no form sent twice.
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

  const describe = (input, keep) => {
    const ids = (input.getAttribute("aria-describedby") ?? "").split(" ").filter((id) => id && id !== `${input.id}-wrong`);
    if (keep) ids.push(`${input.id}-wrong`);
    if (ids.length) input.setAttribute("aria-describedby", ids.join(" ")); else input.removeAttribute("aria-describedby");
  };

  // As the service marks fields when an order is refused; what is still empty is not held against anybody.
  const mark = (plan) => {
    for (const input of document.querySelectorAll("#draft [aria-invalid]")) {
      document.getElementById(`${input.id}-wrong`)?.remove();
      input.removeAttribute("aria-invalid");
      describe(input, false);
    }
    for (const finding of plan.querySelectorAll("[data-input]")) {
      const input = document.getElementById(finding.dataset.input);
      if (!input?.value || input.hasAttribute("aria-invalid")) continue;
      const said = document.createElement("span");
      said.className = "wrong";
      said.id = `${input.id}-wrong`;
      said.textContent = finding.dataset.said;
      input.parentElement.append(said);
      input.setAttribute("aria-invalid", "true");
      describe(input, true);
    }
  };

  document.addEventListener("htmx:after:swap", (event) => {
    const target = event.detail?.ctx?.target;
    if (target?.id === "draft") htmx.trigger("#plan", "replan");
    if (target?.id === "plan") mark(target);
  });

  // A stream that goes on after a break is not led to the sign-in page by its answer, but a page is.
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail?.status === 401) location.reload();
  });

  // Of a stream htmx itself repeats every try but the first, which a busy or restarting service may refuse as well.
  const RECONNECT = 5_000;
  document.addEventListener("htmx:finally:request", (event) => {
    const { sourceElement: source, response } = event.detail.ctx;
    if (!source.hasAttribute("hx-sse:connect") || (response && response.status !== 429 && response.status < 500)) return;
    setTimeout(() => htmx.trigger(source, "reconnect"), 1000 * response?.headers.get("Retry-After") || RECONNECT);
  });

  // Who clicks twice sends once: every sending would make a job, or a key.
  const AGAIN = 15_000;
  const sent = new Map();
  document.addEventListener("submit", (event) => {
    if (event.target.getAttribute("method") !== "post") return;
    const what = `${event.target.getAttribute("action")} ${event.submitter?.value}`;
    if (event.timeStamp - (sent.get(what) ?? -AGAIN) < AGAIN) event.preventDefault();
    else sent.set(what, event.timeStamp);
  });
  window.addEventListener("pageshow", () => sent.clear());

  prepare(document);
})();
