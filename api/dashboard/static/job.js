// The throughput chart of a running job: points come with the page, then from the named `progress` events of its stream.
(() => {
  "use strict";

  const section = document.getElementById("throughput");
  if (!section || !window.uPlot) return;

  const WINDOW = 600;
  const UNITS = ["B/s", "kB/s", "MB/s", "GB/s", "TB/s"];
  const box = document.getElementById("chart");
  const said = document.getElementById("chart-said");
  const speeds = [[], []];
  let last = null;
  let chart = null;

  const speed = (bytes) => {
    let unit = 0;
    while (bytes >= 1000 && unit < UNITS.length - 1) { bytes /= 1000; unit += 1; }
    return `${bytes >= 100 || unit === 0 ? bytes.toFixed(0) : bytes.toFixed(1)} ${UNITS[unit]}`;
  };

  const add = (point) => {
    if (last && point.seq <= last.seq) return;
    if (last && last.phase === point.phase && point.at > last.at && point.bytes >= last.bytes) {
      speeds[0].push(point.at);
      speeds[1].push((point.bytes - last.bytes) / (point.at - last.at));
      if (speeds[0].length > WINDOW) { speeds[0].shift(); speeds[1].shift(); }
    }
    last = point;
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

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
        { ...axis, size: 80, values: (self, ticks) => ticks.map(speed) }],
      series: [{}, { stroke: () => colour("--accent"), width: 2, points: { show: speeds[0].length < 40 } }],
    }, speeds, box);
  };

  const show = () => {
    const count = speeds[1].length;
    if (count < 2) return;
    if (section.hidden) { section.hidden = false; draw(); } else chart.setData(speeds);
    const mean = speeds[1].reduce((sum, each) => sum + each, 0) / count;
    said.textContent = `Last ${speed(speeds[1][count - 1])}, mean ${speed(mean)}, highest ${speed(Math.max(...speeds[1]))}.`;
  };

  JSON.parse(section.dataset.points).forEach(add);
  show();
  document.addEventListener("progress", (event) => {
    if (typeof event.detail?.data !== "string") return;
    add(JSON.parse(event.detail.data));
    show();
  });
  window.addEventListener("resize", () => { if (chart) chart.setSize({ width: Math.max(200, box.clientWidth), height: 180 }); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (chart) draw(); });
})();
