// Layers x experts on a canvas. Python keeps the data and sends one slice (one label, one metric) at a time.
const MARGIN = { left: 44, leftJapanese: 68, top: 16, bottom: 16 };

function render({ model, el }) {
  el.classList.add("moelens");
  const texts = model.get("texts");
  const canvas = takesKeys(element("canvas", { className: "moelens-map" }), texts.keys);
  const heading = element("div", { className: "moelens-heading" });
  const readout = element("output", { className: "moelens-readout" });
  readout.setAttribute("aria-live", "polite");
  const hint = element("span", { className: "moelens-soft" });
  const search = element("input", { type: "search", placeholder: "L3 E17", size: 8, title: texts.go });
  search.dataset.lmSuppressShortcuts = "true";
  const sorted = element("input", { type: "checkbox", checked: model.get("sorted") });
  sorted.dataset.lmSuppressShortcuts = "true";
  const named = (name) => model.get("names")[name] || name;
  const [labels, onLabel] = choice(model, "label", "labels", texts.label, named);
  const [metrics, onMetric] = choice(model, "metric", "metrics", texts.metric, named);
  const bar = element("span", { className: "moelens-bar" }, element("i")), low = element("span"), high = element("span");
  const key = element("span", { className: "moelens-soft" });
  el.append(
    heading,
    element("div", { className: "moelens-controls" }, labels, metrics, search,
      element("label", {}, sorted, ` ${texts.sort}`),
      element("span", { className: "moelens-legend" }, low, bar, high, key)),
    canvas,
    element("div", { className: "moelens-foot" }, readout, hint));

  let values, significant, order, cell, row, lut, drag = null;
  const cells = document.createElement("canvas"); // the coloured cells, painted once for each slice; marks are drawn over them
  const ratio = Math.max(1, window.devicePixelRatio || 1);
  const left = (/[^ -~]/.test(texts.expert) ? MARGIN.leftJapanese : MARGIN.left) * ratio, top = MARGIN.top * ratio, bottom = MARGIN.bottom * ratio;
  const shape = () => model.get("shape"), width = () => Math.min(960, el.clientWidth || 960);

  function read() {
    const [layers, experts] = shape();
    values = floats(model.get("values"));
    significant = octets(model.get("significant"));
    order = Array.from({ length: layers }, (_, l) => {
      const ids = Array.from({ length: experts }, (_, e) => e);
      const at = (e) => (Number.isNaN(values[l * experts + e]) ? -Infinity : values[l * experts + e]);
      return model.get("sorted") ? ids.sort((a, b) => at(b) - at(a)) : ids;
    });
    cell = Math.max(4, Math.floor((width() * ratio - left) / experts));
    row = Math.max(5, Math.min(32 * ratio, Math.floor((420 * ratio) / layers)));
  }

  // Cells that are not significant are grey; those of experts that are never chosen for the label stay empty.
  function paint() {
    const [layers, experts] = shape(), clip = model.get("clip"), dark = isDark(el), page = dark ? 58 : 219;
    lut = octets(model.get(dark ? "lut_dark" : "lut"));
    [cells.width, cells.height] = [experts * cell, layers * row];
    const context = cells.getContext("2d"), gap = cell > 8 ? ratio : 0;
    for (let l = 0; l < layers; l++) {
      for (let i = 0; i < experts; i++) {
        const at = l * experts + order[l][i], value = values[at];
        const place = 3 * Math.max(0, Math.min(255, Math.round(127.5 + (127.5 * value) / clip)));
        if (!Number.isFinite(value)) continue;
        let rgb = [lut[place], lut[place + 1], lut[place + 2]];
        if (!significant[at]) rgb = rgb.map(() => Math.round(0.2 * (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) + 0.8 * page));
        context.fillStyle = `rgb(${rgb})`;
        context.fillRect(i * cell, l * row, cell - gap, row - (row > 8 ? ratio : 0));
      }
    }
    const stops = [0, 0.25, 0.5, 0.75, 1].map((x) => `rgb(${lut.slice(3 * Math.round(255 * x), 3 * Math.round(255 * x) + 3)})`);
    bar.style.background = `linear-gradient(to right, ${stops})`;
    [low.textContent, high.textContent] = [`1/${digits(2 ** clip)}×`, `${digits(2 ** clip)}×, ${texts.line}`];
    key.textContent = ["", values.every(Number.isFinite) ? "" : texts.empty,
      model.get("carded").length ? texts.dot : "",
      model.get("groups") > 1 && !model.get("sorted") ? texts.groups : "",
      model.get("sorted") ? (cell < 18 * ratio ? texts.point : texts.numbers) : ""].filter((part, at) => part || !at).join(" · ");
  }

  function draw() {
    const [layers, experts] = shape(), [layer, expert] = model.get("selected");
    [canvas.width, canvas.height] = [left + experts * cell, top + layers * row + bottom];
    canvas.style.width = `${canvas.width / ratio}px`;
    const ink = getComputedStyle(el).color || "#444", context = canvas.getContext("2d");
    context.drawImage(cells, left, top);
    context.fillStyle = context.strokeStyle = ink;
    const letter = Math.max(ratio, canvas.width / width()); // a wide map is scaled down, but its letters keep their size
    context.font = `${10 * letter}px sans-serif`;
    context.fillText(texts.layer, 2 * ratio, 11 * letter);
    if (!model.get("sorted")) context.fillText(texts.expert, 2 * ratio, canvas.height - 4 * ratio);
    context.textAlign = "right";
    const every = Math.ceil((12 * letter) / row);
    for (let l = 0; l < layers; l += every) context.fillText(`L${model.get("layers")[l]}`, left - 4 * ratio, top + l * row + Math.min(row / 2 + 4 * letter, 10 * letter));
    if (!model.get("sorted")) {
      context.textAlign = "center";
      const step = 2 ** Math.ceil(Math.log2((28 * letter) / cell));
      for (let e = 0; e < experts; e += Math.max(1, step)) context.fillText(`${e}`, left + (e + 0.5) * cell, canvas.height - 4 * ratio);
      const groups = model.get("groups");
      for (let g = 1; g < groups; g++) context.fillRect(left + (g * experts) / groups * cell - ratio, top, ratio, layers * row);
    }
    for (const at of model.get("carded")) {
      const [l, e] = at.split(",").map(Number);
      context.beginPath();
      context.arc(left + (order[l].indexOf(e) + 0.8) * cell, top + (l + 0.8) * row, Math.min(2 * ratio, cell / 6), 0, 7);
      context.fill();
    }
    if (model.get("sorted") && cell >= 18 * ratio) {
      context.textAlign = "center";
      for (let l = 0; l < layers; l++) for (let i = 0; i < experts; i++) context.fillText(`${order[l][i]}`, left + (i + 0.5) * cell, top + (l + 0.5) * row + 4 * letter);
    }
    const box = drag || model.get("brushed");
    if (box.length === 4) {
      const [l0, l1, e0, e1] = box;
      context.setLineDash([4 * ratio, 3 * ratio]);
      context.strokeRect(left + e0 * cell + 0.5, top + l0 * row + 0.5, (e1 - e0 + 1) * cell - 1, (l1 - l0 + 1) * row - 1);
      context.setLineDash([]);
    }
    context.lineWidth = 2 * ratio;
    const around = cell < 10 * ratio ? 3 * ratio : 0; // the frame of a small cell is drawn around it, so that it does not cover it
    context.strokeRect(left + order[layer].indexOf(expert) * cell - around, top + layer * row - around, cell + 2 * around, row + 2 * around);
    heading.textContent = model.get("heading");
    readout.textContent = description(layer, expert);
  }

  function description(layer, expert) {
    const at = layer * shape()[1] + expert, metric = named(model.get("metric"));
    const value = Number.isNaN(values[at]) ? texts.undefined : values[at] === -Infinity ? texts.never : `${digits(2 ** values[at])}×`;
    return `L${model.get("layers")[layer]} E${expert}: ${metric} ${value}${significant[at] ? "" : `, ${texts.insignificant}`}`;
  }

  const redraw = () => { read(); paint(); draw(); };
  function select(layer, expert) {
    const [layers, experts] = shape();
    model.set("selected", [clamp(layer, layers), clamp(expert, experts)]);
    model.save_changes();
  }
  function place(event) { // by the bounding box, because the notebook may scale the canvas
    const box = canvas.getBoundingClientRect(), [layers, experts] = shape();
    const x = (event.clientX - box.left) / box.width * canvas.width - left;
    const y = (event.clientY - box.top) / box.height * canvas.height - top;
    return [clamp(Math.floor(y / row), layers), clamp(Math.floor(x / cell), experts)];
  }
  let start = null;
  canvas.addEventListener("pointerdown", (event) => { start = place(event); canvas.setPointerCapture(event.pointerId); canvas.focus(); });
  canvas.addEventListener("pointermove", (event) => {
    const [l, e] = place(event);
    if (!start) { hint.textContent = `${texts.pointer}: ${description(l, order[l][e])}`; return; }
    drag = [Math.min(start[0], l), Math.max(start[0], l), Math.min(start[1], e), Math.max(start[1], e)];
    draw();
  });
  canvas.addEventListener("pointerleave", () => { hint.textContent = ""; });
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
  const go = () => {
    const found = /^\s*L?(\d+)\D+(\d+)\s*$/i.exec(search.value);
    const layer = found ? model.get("layers").indexOf(Number(found[1])) : -1;
    search.setCustomValidity(layer < 0 || Number(found[2]) >= shape()[1] ? texts.no_expert : "");
    if (search.reportValidity()) select(layer, Number(found[2]));
  };
  search.addEventListener("keydown", (event) => { // a notebook keeps the change event of the Enter key to itself
    if (event.key !== "Enter") return;
    event.stopPropagation();
    go();
  });
  sorted.addEventListener("change", () => { model.set("sorted", sorted.checked); model.save_changes(); redraw(); });
  const silent = listen(model, el, { values: redraw, heading: draw, selected: draw, brushed: draw, ...onLabel, ...onMetric });
  const unthemed = onTheme(redraw);
  let shown = width();
  const resized = new ResizeObserver(() => { if (width() !== shown) { shown = width(); redraw(); } });
  resized.observe(el);
  redraw();
  return () => { silent(); unthemed(); resized.disconnect(); };
}
export default { render };
