// Layers x experts on a canvas. Python owns the data: the browser gets one slice (one label, one metric) at a time.
const MARGIN = { left: 34, top: 4, bottom: 16 };

function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function choice(model, name, options, title) {
  const select = element("select", { title });
  const fill = () => {
    select.replaceChildren(...model.get(options).map((value) => element("option", { value, textContent: value })));
    select.value = model.get(name);
  };
  select.lang = "ja";
  select.addEventListener("change", () => { model.set(name, select.value); model.save_changes(); });
  model.on(`change:${name}`, fill);
  fill();
  return select;
}

function render({ model, el }) {
  const canvas = element("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "layers by experts; arrow keys move, Enter opens the expert, s sorts within layers");
  canvas.dataset.lmSuppressShortcuts = "true"; // on the focusable node itself, else the notebook takes its keys
  canvas.style.cssText = "width: 100%; cursor: crosshair; touch-action: none";
  const heading = element("div", { className: "moelens-heading" });
  const readout = element("output", { className: "moelens-readout" });
  readout.setAttribute("aria-live", "polite");
  const search = element("input", { type: "search", placeholder: "L3 E17", size: 8, title: "go to an expert" });
  search.dataset.lmSuppressShortcuts = "true";
  const sorted = element("input", { type: "checkbox", checked: model.get("sorted") });
  el.append(
    heading,
    element("div", { className: "moelens-controls" },
      choice(model, "label", "labels", "label"), " ", choice(model, "metric", "metrics", "metric"), " ",
      search, " ", element("label", {}, sorted, " sort within layer")),
    canvas, readout);

  let values, significant, order, cell, row, drag = null;
  const shape = () => model.get("shape");

  function read() {
    const [layers, experts] = shape();
    values = floats(model.get("values"));
    significant = new Uint8Array(model.get("significant").buffer, model.get("significant").byteOffset);
    order = Array.from({ length: layers }, (_, l) => {
      const ids = Array.from({ length: experts }, (_, e) => e);
      const at = (e) => (Number.isNaN(values[l * experts + e]) ? -Infinity : values[l * experts + e]);
      return model.get("sorted") ? ids.sort((a, b) => at(b) - at(a)) : ids;
    });
    cell = Math.max(4, Math.floor(960 / experts));
    row = Math.max(5, Math.min(22, Math.floor(420 / layers)));
  }

  // What does not survive its control fades into the page, light or dark.
  const dark = () => /^rgba?\((\d+)/.exec(getComputedStyle(el).color)?.[1] > 127;

  function colour(value, sure, page) {
    if (Number.isNaN(value)) return [page, page, page];
    const lut = model.get("lut"), clip = model.get("clip");
    const at = Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * value) / clip)));
    const rgb = [0, 1, 2].map((i) => lut.getUint8(3 * at + i));
    if (sure) return rgb;
    const grey = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
    return rgb.map(() => Math.round(0.2 * grey + 0.8 * page));
  }

  function draw() {
    const [layers, experts] = shape(), [layer, expert] = model.get("selected");
    canvas.width = MARGIN.left + experts * cell;
    canvas.height = MARGIN.top + layers * row + MARGIN.bottom;
    const ink = getComputedStyle(el).color || "#444", context = canvas.getContext("2d");
    const gap = cell > 8 ? 1 : 0, page = dark() ? 64 : 216;
    for (let l = 0; l < layers; l++) {
      for (let i = 0; i < experts; i++) {
        const at = l * experts + order[l][i];
        context.fillStyle = `rgb(${colour(values[at], significant[at], page)})`;
        context.fillRect(MARGIN.left + i * cell, MARGIN.top + l * row, cell - gap, row - (row > 8 ? 1 : 0));
      }
    }
    context.fillStyle = ink;
    context.font = "10px sans-serif";
    context.textAlign = "right";
    const every = Math.ceil(12 / row);
    for (let l = 0; l < layers; l += every) context.fillText(`L${model.get("layers")[l]}`, MARGIN.left - 4, MARGIN.top + l * row + Math.min(row, 10));
    if (!model.get("sorted")) {
      context.textAlign = "center";
      const step = 2 ** Math.ceil(Math.log2(28 / cell));
      for (let e = 0; e < experts; e += Math.max(1, step)) context.fillText(`${e}`, MARGIN.left + (e + 0.5) * cell, canvas.height - 4);
      const groups = model.get("groups");
      for (let g = 1; g < groups; g++) context.fillRect(MARGIN.left + (g * experts) / groups * cell - 1, MARGIN.top, 1, layers * row);
    }
    const box = drag || model.get("brushed");
    context.strokeStyle = ink;
    if (box.length === 4) {
      const [l0, l1, e0, e1] = box;
      context.setLineDash([4, 3]);
      context.strokeRect(MARGIN.left + e0 * cell + 0.5, MARGIN.top + l0 * row + 0.5, (e1 - e0 + 1) * cell - 1, (l1 - l0 + 1) * row - 1);
      context.setLineDash([]);
    }
    context.lineWidth = 2;
    context.strokeRect(MARGIN.left + order[layer].indexOf(expert) * cell, MARGIN.top + layer * row, cell, row);
    const value = values[layer * experts + expert], sure = significant[layer * experts + expert];
    heading.textContent = model.get("heading");
    readout.textContent = `L${model.get("layers")[layer]} E${expert}: ${model.get("metric")} ` +
      (Number.isNaN(value) ? "not defined" : `${(2 ** value).toPrecision(3)}`) + (sure ? "" : ", does not survive the control");
  }

  const redraw = () => { read(); draw(); };
  const clamp = (x, n) => Math.max(0, Math.min(n - 1, x));
  function select(layer, expert) {
    const [layers, experts] = shape();
    model.set("selected", [clamp(layer, layers), clamp(expert, experts)]);
    model.save_changes();
  }
  function place(event) { // through the bounding box: the canvas is shown at the width of the cell
    const box = canvas.getBoundingClientRect(), [layers, experts] = shape();
    const x = (event.clientX - box.left) / box.width * canvas.width - MARGIN.left;
    const y = (event.clientY - box.top) / box.height * canvas.height - MARGIN.top;
    return [clamp(Math.floor(y / row), layers), clamp(Math.floor(x / cell), experts)];
  }
  let start = null;
  canvas.addEventListener("pointerdown", (event) => { start = place(event); canvas.setPointerCapture(event.pointerId); canvas.focus(); });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [l, e] = place(event);
    drag = [Math.min(start[0], l), Math.max(start[0], l), Math.min(start[1], e), Math.max(start[1], e)];
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [l, e] = place(event), moved = l !== start[0] || e !== start[1];
    model.set("brushed", moved && drag ? drag : []);
    [start, drag] = [null, null];
    if (moved) { model.save_changes(); draw(); } else select(l, order[l][e]);
  });
  canvas.addEventListener("keydown", (event) => {
    const [layer, expert] = model.get("selected"), at = order[layer].indexOf(expert), last = shape()[1] - 1;
    const to = { ArrowUp: [layer - 1, at], ArrowDown: [layer + 1, at], ArrowLeft: [layer, at - 1], ArrowRight: [layer, at + 1], Home: [layer, 0], End: [layer, last] }[event.key];
    if (to) select(clamp(to[0], shape()[0]), order[clamp(to[0], shape()[0])][clamp(to[1], shape()[1])]);
    else if (event.key === "Enter") { model.set("opened", model.get("opened") + 1); model.save_changes(); }
    else if (event.key === "s") sorted.click();
    else if (event.key === "Escape") { model.set("brushed", []); model.save_changes(); draw(); }
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  search.addEventListener("change", () => {
    const found = /^\s*L?(\d+)\D+(\d+)\s*$/i.exec(search.value);
    const layer = found ? model.get("layers").indexOf(Number(found[1])) : -1;
    search.setCustomValidity(layer < 0 || Number(found[2]) >= shape()[1] ? "no such expert; write for example L3 E17" : "");
    if (search.reportValidity()) select(layer, Number(found[2]));
  });
  sorted.addEventListener("change", () => { model.set("sorted", sorted.checked); model.save_changes(); redraw(); });
  model.on("change:values", redraw);
  model.on("change:selected", draw);
  model.on("change:brushed", draw);
  redraw();
  return () => { model.off("change:values", redraw); model.off("change:selected", draw); model.off("change:brushed", draw); };
}
export default { render };
