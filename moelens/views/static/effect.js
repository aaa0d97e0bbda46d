// A button that removes the selected expert, and a table of the effects, which Python computes.
function render({ model, el }) {
  el.classList.add("moelens");
  const texts = model.get("texts"), named = (kind) => texts[`kind_${kind}`] || kind;
  const [kinds, onKind] = choice(model, "kind", "kinds", texts.kind, named);
  const controls = element("input", { type: "checkbox", checked: model.get("controls"), title: texts.controls });
  const button = element("button", { type: "button" });
  for (const node of [controls, button]) node.dataset.lmSuppressShortcuts = "true";
  const message = element("output", { className: "moelens-readout" });
  message.setAttribute("aria-live", "polite");
  const table = element("table", { className: "moelens-effects" }), note = element("div", { className: "moelens-soft" });
  const panel = element("div", { className: "moelens-controls" }, button, element("label", {}, `${texts.kind} `, kinds),
    element("label", {}, controls, ` ${texts.controls}`));
  el.append(panel, message, table, note);

  const signed = (x) => (Number.isFinite(x) ? `${x < -1e-14 ? "−" : "+"}${Math.abs(x).toFixed(3)}` : "–");
  const span = (low, high) => (Number.isFinite(low) ? ` [${signed(low)}, ${signed(high)}]` : "");

  // The line in the middle is zero, the dot the change, the bar its 95 % interval, the hatched bar that of the controls.
  function drawn(row, size) {
    const at = (x) => 50 + (50 * x) / size, bar = element("span", { className: "moelens-interval" });
    const strip = (low, high, name) => element("i", { className: name, style: `left: ${at(low)}%; width: ${Math.max(0.5, at(high) - at(low))}%` });
    if (Number.isFinite(row.control_low)) bar.append(strip(row.control_low, row.control_high, "moelens-control"));
    bar.append(strip(row.low, row.high, "moelens-change"), element("i", { className: "moelens-dot", style: `left: ${at(row.change)}%` }));
    return bar;
  }

  function draw() {
    const rows = model.get("rows"), running = model.get("status") === "running";
    button.textContent = running ? texts.running : worded(texts.remove, { target: model.get("target") });
    button.disabled = running;
    panel.hidden = !model.get("available"); // a file has no kernel to remove anything
    controls.checked = model.get("controls");
    message.textContent = model.get("message");
    message.classList.toggle("moelens-failed", model.get("status") === "failed");
    const size = rows.flatMap((r) => [r.low, r.high, r.control_low, r.control_high]).filter(Number.isFinite)
      .reduce((most, x) => Math.max(most, Math.abs(x)), 1e-6);
    const header = [texts.removed, texts.sentences, texts.preference, texts.change, "", texts.flipped, texts.middle, "p"];
    const cells = (row) => [row.target, `${row.items} ${named(row.kind)}`, `${signed(row.before)} → ${signed(row.after)}`,
      `${signed(row.change)}${span(row.low, row.high)}`, drawn(row, size), `${Math.round(100 * row.flip)} %`,
      `${signed(row.control)}${span(row.control_low, row.control_high)}`, digits(row.p)];
    table.replaceChildren(...(rows.length ? [
      element("tr", {}, ...header.map((textContent) => element("th", { textContent }))),
      ...rows.map((row) => element("tr", {}, ...cells(row).map((content) => element("td", {}, content)))),
    ] : []));
    note.textContent = rows.length ? texts.note : "";
  }
  button.addEventListener("click", () => { model.set("clicks", model.get("clicks") + 1); model.save_changes(); });
  controls.addEventListener("change", () => { model.set("controls", controls.checked); model.save_changes(); });
  const silent = listen(model, el, { rows: draw, status: draw, message: draw, target: draw, controls: draw, ...onKind });
  draw();
  return silent;
}
export default { render };
