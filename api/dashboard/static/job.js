// The throughput charts of a running job: points come with the page, then from the named `progress` events of its stream.
(() => {
  "use strict";

  const sections = [...document.querySelectorAll("section.throughput")];
  if (!sections.length || !window.uPlot) return;

  const WINDOW = 600;
  const UNITS = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];

  const bytes = (count) => {
    let unit = 0;
    while (count >= 1000 && unit < UNITS.length - 1) { count /= 1000; unit += 1; }
    return `${count >= 100 || unit === 0 ? count.toFixed(0) : count.toFixed(1)} ${UNITS[unit]}`;
  };
  const tokens = (count) => `${count.toLocaleString("en", { maximumSignificantDigits: 3 })} tokens/s`;
  const SAY = { bytes, tokens };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const charted = (section) => {
    const unit = section.dataset.unit;
    const say = SAY[unit];
    const box = section.querySelector(".chart");
    const said = section.querySelector("p");
    const speeds = [[], []];
    let last = null;
    let chart = null;

    const add = (point) => {
      if (typeof point[unit] !== "number" || (last && point.seq <= last.seq)) return;
      if (last && last.phase === point.phase && point.at > last.at && point[unit] >= last[unit]) {
        speeds[0].push(point.at);
        speeds[1].push((point[unit] - last[unit]) / (point.at - last.at));
        if (speeds[0].length > WINDOW) { speeds[0].shift(); speeds[1].shift(); }
      }
      last = point;
    };

    const draw = () => {
      if (chart) chart.destroy();
      const soft = () => colour("--soft");
      const axis = { stroke: soft, grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false },
        font: "12px system-ui, sans-serif" };
      chart = new uPlot({
        width: Math.max(200, box.clientWidth),
        height: 180,
        legend: { show: false },
        cursor: { show: false },
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        scales: { y: { range: (self, low, high) => [0, Math.max(1, high * 1.1)] } },
        axes: [{ ...axis, values: [[1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]], space: 80, size: 32 },
          { ...axis, size: unit === "bytes" ? 80 : 120, values: (self, ticks) => ticks.map(say) }],
        series: [{}, { stroke: () => colour("--accent"), width: 2, points: { show: speeds[0].length < 40 } }],
      }, speeds, box);
    };

    const show = () => {
      const count = speeds[1].length;
      if (count < 2) return;
      if (section.hidden) { section.hidden = false; draw(); } else chart.setData(speeds);
      const mean = speeds[1].reduce((sum, each) => sum + each, 0) / count;
      said.textContent = `Last ${say(speeds[1][count - 1])}, mean ${say(mean)}, highest ${say(Math.max(...speeds[1]))}.`;
    };

    window.addEventListener("resize", () => { if (chart) chart.setSize({ width: Math.max(200, box.clientWidth), height: 180 }); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (chart) draw(); });
    return { add, show };
  };

  const charts = sections.map(charted);
  const take = (points) => charts.forEach((each) => { points.forEach(each.add); each.show(); });

  take(JSON.parse(sections[0].dataset.points));
  document.addEventListener("progress", (event) => {
    if (typeof event.detail?.data === "string") take([JSON.parse(event.detail.data)]);
  });
})();
