// Texts as tokens with their routes in one layer. Python sends the layer that is shown.
const GOLDEN = 0.618034;

function render({ model, el }) {
  el.classList.add("moelens");
  const texts = model.get("texts"), named = (name) => texts[`colour_${name}`] || name;
  const heading = element("div", { className: "moelens-heading" });
  const slider = element("input", { type: "range", title: texts.layer, min: 0, max: model.get("layers").length - 1 });
  slider.dataset.lmSuppressShortcuts = "true";
  const [colours, onColour] = choice(model, "colour", "colours", texts.colour, named);
  const layerName = element("b"), legend = element("span", { className: "moelens-legend" });
  const board = takesKeys(element("div", { className: "moelens-tokens" }), texts.keys);
  const readout = element("output", { className: "moelens-readout" });
  readout.setAttribute("aria-live", "polite");
  el.append(heading,
    element("div", { className: "moelens-controls" },
      element("label", {}, `${texts.layer} `, slider, " ", layerName), element("label", {}, `${texts.colour} `, colours), legend),
    board, element("div", { className: "moelens-foot" }, readout));

  let cells = [], marks = [], experts, weights, values;
  const slots = () => model.get("slots");
  const route = (i) => Array.from({ length: slots() }, (_, s) => [experts[i * slots() + s], weights[i * slots() + s]])
    .sort((a, b) => b[1] - a[1]);

  function cell(token, i) {
    const classes = model.get("spans").filter(([start, end]) => start <= i && i < end);
    const text = element("span", { textContent: token.replaceAll("\n", "↵") || "∅", lang: "ja" });
    const node = element("span", { className: "moelens-token" }, text, element("small"));
    for (const [start, , name] of classes) {
      const [colour, mark, gloss] = model.get("styles")[name] || ["#888888", "", ""];
      text.style.borderBottomColor = colour;
      node.title = [node.title, gloss ? `${name} (${gloss})` : name].filter(Boolean).join(", ");
      if (start === i) node.prepend(element("sup", { textContent: mark, style: `color: ${colour}` }));
    }
    const choose = () => { model.set("selected", i); model.save_changes(); };
    node.addEventListener("pointerenter", () => showRoute(i));
    node.addEventListener("click", choose);
    return node;
  }

  // Each text is a block of its own; the two texts of a pair are aligned, with corresponding tokens in one column.
  function build() {
    const lines = model.get("lines"), starts = [], columns = model.get("columns");
    cells = [];
    for (const line of lines) { starts.push(cells.length); for (const token of line) cells.push(cell(token, cells.length)); }
    const empty = () => element("span", { className: "moelens-token moelens-none", textContent: "–" });
    marks = columns.map(() => element("small", { className: "moelens-differs" }));
    const blocks = columns.length
      ? [element("div", {}, ...columns.map((pair, at) => element("span", { className: "moelens-column" },
        ...pair.map((i, line) => (i < 0 ? empty() : cells[starts[line] + i])), marks[at])))]
      : lines.map((line, at) => element("div", { className: "moelens-line" },
        element("div", { className: "moelens-soft moelens-title" }),
        ...cells.slice(starts[at], starts[at] + line.length)));
    board.replaceChildren(...(cells.length ? blocks : [element("i", { textContent: texts.no_tokens })]));
  }

  // The text below a token and the colour of its cell, which is translucent, for light and dark pages.
  function look(i, mode, low, high) {
    const best = route(i)[0], spans = model.get("spans").filter(([start, end]) => start <= i && i < end);
    if (mode === "expert") return [`${best[0]}`, `hsla(${(best[0] * GOLDEN % 1) * 360}, 75%, 50%, 0.3)`];
    if (mode === "label") {
      const [colour, mark] = spans.length ? model.get("styles")[spans.at(-1)[2]] || ["#888888", "·"] : ["#00000000", "\u00a0"];
      return [mark, spans.length ? `${colour}55` : colour];
    }
    const value = valueOf(i, mode);
    if (!Number.isFinite(value)) return ["–", "transparent"];
    const share = high > low ? (value - low) / (high - low) : 0.5;
    return [Number(value.toPrecision(2)).toString(), `rgba(0, 114, 178, ${0.06 + 0.6 * share})`];
  }
  const valueOf = (i, mode) => (mode === "weight" ? route(i)[0][1] : values[model.get("measures").indexOf(mode) * cells.length + i]);

  function draw() {
    experts = shorts(model.get("experts"));
    weights = floats(model.get("weights"));
    values = floats(model.get("values"));
    const mode = model.get("colour"), marked = model.get("highlight"), numeric = !["expert", "label"].includes(mode);
    const all = numeric ? cells.map((_, i) => valueOf(i, mode)).filter(Number.isFinite) : [];
    const low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    cells.forEach((node, i) => {
      const [text, colour] = look(i, mode, low, high);
      node.querySelector("small").textContent = text;
      node.style.backgroundColor = colour;
      node.classList.toggle("moelens-taken", marked >= 0 && route(i).some(([expert]) => expert === marked));
    });
    const differs = shorts(model.get("differs"));
    marks.forEach((node, at) => { node.textContent = differs[at] === 65535 ? "" : differs[at] ? `≠${differs[at]}` : "="; });
    marks.forEach((node, at) => node.parentNode.classList.toggle("moelens-apart", differs[at] > 0 && differs[at] < 65535));
    legend.textContent = [
      numeric && all.length ? worded(texts.from, { low: digits(low), high: digits(high) }) : "",
      mode === "expert" ? texts.number_below : "",
      marks.length ? texts.apart : "",
      cells.some((node) => node.firstElementChild.textContent === "▫") ? texts.further : "",
      ...[...new Set(model.get("spans").map((span) => span[2]))].map((name) => {
        const [, sign, gloss] = model.get("styles")[name] || ["", "", ""];
        return `${sign} ${name}${gloss ? ` (${gloss})` : ""}`;
      }),
    ].filter(Boolean).join(" · ");
    heading.textContent = model.get("heading");
    board.querySelectorAll(".moelens-title").forEach((node, at) => { node.textContent = model.get("titles")[at] || ""; });
    mark();
  }

  function mark() {
    const at = model.get("selected");
    cells.forEach((node, i) => node.classList.toggle("moelens-chosen", i === at));
    showRoute(at);
  }

  function showRoute(i) {
    if (!cells[i]) { readout.textContent = ""; return; }
    const others = model.get("measures").map((name) => [name, valueOf(i, name)]).filter(([, value]) => Number.isFinite(value));
    const chosen = route(i).map(([expert, weight]) => element("span", { className: "moelens-route" }, `E${expert} `,
      element("span", { className: "moelens-weight", style: `width: ${Math.max(1, 60 * Math.min(1, weight)) || 1}px` }), ` ${digits(weight)}`));
    const word = cells[i].querySelector("span").textContent;
    readout.replaceChildren(element("b", { textContent: word, lang: "ja" }), ` ${cells[i].title} L${model.get("layer")}: `, ...chosen,
      others.map(([name, value]) => `${named(name)} ${digits(value)}`).join(" · "));
  }

  function name() {
    slider.value = model.get("layers").indexOf(model.get("layer"));
    layerName.textContent = `L${model.get("layer")}`;
    slider.setAttribute("aria-valuetext", layerName.textContent);
  }

  function layer(at) {
    model.set("layer", model.get("layers")[clamp(at, model.get("layers").length)]);
    model.save_changes();
  }
  slider.addEventListener("input", () => layer(Number(slider.value)));
  board.addEventListener("pointerleave", () => showRoute(model.get("selected")));
  board.addEventListener("keydown", (event) => {
    const at = model.get("selected"), now = model.get("layers").indexOf(model.get("layer"));
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: cells.length - 1 }[event.key];
    if (to !== undefined) { model.set("selected", clamp(to, cells.length)); model.save_changes(); }
    else if (event.key === "ArrowUp") layer(now - 1);
    else if (event.key === "ArrowDown") layer(now + 1);
    else if (event.key === "c") {
      const names = model.get("colours");
      model.set("colour", names[(names.indexOf(model.get("colour")) + 1) % names.length]);
      model.save_changes();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const rebuild = () => { build(); name(); draw(); };
  const silent = listen(model, el, { lines: rebuild, layer: name, experts: draw, heading: draw, titles: draw, highlight: draw, selected: mark, colour: () => { onColour.colour(); draw(); } });
  rebuild();
  return silent;
}
export default { render };
