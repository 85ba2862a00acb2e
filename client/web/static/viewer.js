// Shows a scan with truth and prediction in NiiVue. The page's slices need none of it.
"use strict";

(() => {
  const RED = [[0, 86, 230, 0, 204, 240, 213, 0], [0, 0, 213, 255, 148, 126, 20, 180]];
  const GREEN = [[0, 180, 159, 158, 121, 228, 94, 114], [0, 220, 60, 230, 0, 0, 160, 90]];
  const BLUE = [[0, 233, 0, 115, 167, 66, 0, 178], [0, 120, 220, 90, 211, 200, 0, 255]];

  function colours(labels, palette) {
    const values = [0, ...Object.keys(labels).map(Number)];
    const of = (table) => values.map((value) => (value === 0 ? 0 : table[palette][((value - 1) % 7) + 1]));
    return { R: of(RED), G: of(GREEN), B: of(BLUE), A: values.map((value) => (value === 0 ? 0 : 255)), I: values, labels: values.map((value) => labels[value] || "") };
  }

  async function show(box) {
    const { Niivue } = await import(new URL(box.dataset.niivue, location.href));
    const said = box.querySelector("[role=status]");
    const find = (name) => box.querySelector(`[name=${name}]`);
    box.hidden = false;
    const viewer = new Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: true, logLevel: "error", dragAndDropEnabled: false });
    await viewer.attachToCanvas(box.querySelector("canvas"));
    await viewer.loadVolumes([{ url: box.dataset.image }, { url: box.dataset.truth, opacity: 0.5 }, { url: box.dataset.prediction, opacity: 0.5 }]);
    const labels = JSON.parse(box.dataset.labels);
    viewer.volumes[1].setColormapLabel(colours(labels, 0));
    viewer.volumes[2].setColormapLabel(colours(labels, 1));
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
    said.hidden = true;
    box.dataset.ready = "yes";
  }

  const start = () => document.querySelectorAll(".viewer[data-niivue]:not([data-begun])").forEach((box) => {
    box.dataset.begun = "yes";
    show(box).catch(() => {
      box.hidden = false;
      const said = box.querySelector("[role=status]");
      said.textContent = box.dataset.failed;
      box.replaceChildren(said);
    });
  });
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", start);
})();
