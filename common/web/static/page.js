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
  const HEIGHT = 280;
  const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]];
  const MARKERS = ["solid", "dashed", "dotted", "double"];
  const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const dashes = (index) => Math.floor(Math.max(index, 0) / COLOURS) % DASHES.length;
  const said = (plot, value) => value ?? "";

  function series(name, index) {
    const common = { label: name, value: said };
    if (index < 0) return { ...common, stroke: style("--ink"), width: 3, points: { size: 4 } };
    return { ...common, stroke: style(`--site-${index % COLOURS}`), width: 1.5, dash: DASHES[dashes(index)], points: { size: 4 } };
  }

  function options(box, curves) {
    const axis = { stroke: style("--muted"), grid: { stroke: style("--grid") }, ticks: { stroke: style("--grid") } };
    const scales = { x: { time: false } };
    if (curves.limits) scales.y = { range: () => curves.limits };
    return {
      width: Math.max(box.clientWidth, 260),
      height: HEIGHT,
      scales,
      axes: [{ ...axis, label: curves.x_label, labelSize: 24, incrs: WHOLE }, { ...axis, size: 60 }],
      series: [{ label: curves.x_label, value: said }, ...curves.curves.map((curve) => series(curve.name, curve.style))],
      legend: { show: true, live: curves.curves.length <= COLOURS, markers: { width: 3, dash: (plot, at) => MARKERS[at ? dashes(curves.curves[at - 1].style) : 0] } },
      // The line under the pointer stands out, here and in the legend.
      cursor: { focus: { prox: 16 } },
      focus: { alpha: 0.25 },
    };
  }

  const drawn = new Map();

  function put(box, curves) {
    const data = [curves.x, ...curves.curves.map((curve) => curve.y)];
    const old = drawn.get(box);
    if (old) old.plot.destroy();
    box.replaceChildren();
    box.classList.add("drawn");
    drawn.set(box, { plot: new uPlot(options(box, curves), data, box), curves, mark: old && old.mark });
    const canvas = box.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", box.dataset.label);
  }

  async function draw(box) {
    const { mark } = box.nextElementSibling.dataset;
    const old = drawn.get(box);
    if (old && old.mark === mark) return;
    const answer = await fetch(box.dataset.curves, { headers: { Accept: "application/json" } });
    if (!answer.ok) return;
    const curves = await answer.json();
    const names = (some) => JSON.stringify(some.curves.map((curve) => curve.name));
    if (!curves.x.length) return;
    if (old && names(old.curves) === names(curves)) {
      old.curves = curves;
      old.plot.setData([curves.x, ...curves.curves.map((curve) => curve.y)]);
    } else {
      put(box, curves);
    }
    drawn.get(box).mark = mark;
  }

  const boxes = () => document.querySelectorAll("[data-curves]");
  const redraw = () => {
    [...drawn.keys()].filter((box) => !box.isConnected).forEach((box) => { drawn.get(box).plot.destroy(); drawn.delete(box); });
    boxes().forEach((box) => draw(box).catch(() => {}));
  };
  document.addEventListener("DOMContentLoaded", redraw);
  document.addEventListener("htmx:afterSettle", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach((old, box) => put(box, old.curves));
  });
  window.addEventListener("resize", () => {
    drawn.forEach((old, box) => old.plot.setSize({ width: Math.max(box.clientWidth, 260), height: HEIGHT }));
  });
})();
