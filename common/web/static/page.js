// What pages do beyond plain HTML: they say whether they are live, ask before an action, and draw curves.
// Everything that they show and do is there without this file.
"use strict";

(() => {
  const news = document.getElementById("news");
  const say = (on) => {
    if (!news) return;
    news.textContent = on ? news.dataset.on : news.dataset.off;
    news.classList.toggle("on", on);
  };
  document.addEventListener("htmx:sseOpen", () => say(true));
  document.addEventListener("htmx:sseError", () => say(false));
  document.addEventListener("htmx:sseClose", () => say(false));

  document.addEventListener("submit", (event) => {
    const question = event.submitter && event.submitter.dataset.confirm;
    if (question && !window.confirm(question)) event.preventDefault();
  });

  const COLOURS = 8;
  const DASHES = [[], [6, 3], [2, 3]];
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function series(name, index) {
    if (index < 0) return { label: name, stroke: style("--ink"), width: 3, points: { show: false } };
    const stroke = style(`--site-${index % COLOURS}`);
    return { label: name, stroke, width: 1.5, dash: DASHES[Math.floor(index / COLOURS) % DASHES.length], points: { size: 4 } };
  }

  function options(box, curves) {
    const axis = { stroke: style("--muted"), grid: { stroke: style("--grid") }, ticks: { stroke: style("--grid") } };
    const scales = { x: { time: false } };
    if (curves.limits) scales.y = { range: () => curves.limits };
    return {
      width: Math.max(box.clientWidth, 260),
      height: 280,
      scales,
      axes: [{ ...axis, label: curves.x_label, labelSize: 24 }, { ...axis, size: 60 }],
      series: [{ label: curves.x_label }, ...curves.curves.map((curve) => series(curve.name, curve.style))],
      legend: { show: true, live: curves.curves.length <= 8 },
    };
  }

  const plots = new Map();

  async function draw(box) {
    const answer = await fetch(box.dataset.curves, { headers: { Accept: "application/json" } });
    if (!answer.ok) return;
    const curves = await answer.json();
    if (!curves.x.length) return;
    const data = [curves.x, ...curves.curves.map((curve) => curve.y)];
    const plot = plots.get(box);
    if (plot && plot.series.length === data.length) {
      plot.setData(data);
      return;
    }
    if (plot) plot.destroy();
    box.replaceChildren();
    plots.set(box, new uPlot(options(box, curves), data, box));
  }

  const redraw = () => document.querySelectorAll("[data-curves]").forEach((box) => draw(box).catch(() => {}));
  const rebuild = () => {
    plots.forEach((plot, box) => { plot.destroy(); box.replaceChildren(); });
    plots.clear();
    redraw();
  };
  document.addEventListener("DOMContentLoaded", redraw);
  document.addEventListener("htmx:afterSettle", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(rebuild, 200); });
})();
