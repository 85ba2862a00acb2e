// Shows a scan with truth and prediction in NiiVue. The page's slices need none of it.
"use strict";

(() => {
  // The colours are those of the legend.
  function colours(labels, legend) {
    const values = [0, ...Object.keys(labels).map(Number)];
    const of = (value) => {
      const key = legend.querySelector(`[data-label="${value}"]`);
      return key ? getComputedStyle(key).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number) : [0, 0, 0];
    };
    const [R, G, B] = [0, 1, 2].map((channel) => values.map((value) => of(value)[channel]));
    return { R, G, B, A: values.map((value) => (value === 0 ? 0 : 255)), I: values, labels: values.map((value) => labels[value] || "") };
  }

  async function show(box) {
    const { Niivue } = await import(new URL(box.dataset.niivue, location.href));
    const said = box.querySelector("[role=status]");
    const find = (name) => box.querySelector(`[name=${name}]`);
    box.hidden = false;
    const viewer = new Niivue({ backColor: [0, 0, 0, 1], isRadiologicalConvention: true, crosshairWidth: 0.5, fontMinPx: 18, logLevel: "error", dragAndDropEnabled: false });
    await viewer.attachToCanvas(box.querySelector("canvas"));
    await viewer.loadVolumes([{ url: box.dataset.image }, { url: box.dataset.truth, opacity: 0.5 }, { url: box.dataset.prediction, opacity: 0.5 }]);
    const labels = JSON.parse(box.dataset.labels);
    ["truth", "prediction"].forEach((name, index) =>
      viewer.volumes[index + 1].setColormapLabel(colours(labels, find(name).closest(".buttons"))));
    viewer.updateGLVolume();
    viewer.setSliceType(3);
    const fade = () => ["truth", "prediction"].forEach((name, index) =>
      viewer.setOpacity(index + 1, find(name).checked ? Number(find("opacity").value) : 0));
    ["truth", "prediction", "opacity"].forEach((name) => find(name).addEventListener("input", fade));
    find("view").addEventListener("change", () => viewer.setSliceType(Number(find("view").value)));
    const along = () => [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]][Number(find("view").value)];
    const move = (by) => viewer.moveCrosshairInVox(...along().map((step) => step * by));
    find("back").addEventListener("click", () => move(-1));
    find("forward").addEventListener("click", () => move(1));
    box.querySelector("canvas").addEventListener("keydown", (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      move(by);
    });
    said.hidden = true;
    box.dataset.ready = "yes";
  }

  const start = () => document.querySelectorAll(".viewer[data-niivue]:not([data-begun])").forEach((box) => {
    box.dataset.begun = "yes";
    show(box).catch(() => {
      box.hidden = false;
      const said = box.querySelector("[role=status]");
      said.textContent = box.dataset.failed;
      said.hidden = false;
      box.querySelector(".shown").remove();
    });
  });
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", start);
})();
