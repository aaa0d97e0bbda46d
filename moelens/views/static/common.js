// Functions that all live views share. Text from models and corpora is only ever set as textContent.
function element(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const copied = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
const floats = (view) => new Float32Array(copied(view));
const shorts = (view) => new Uint16Array(copied(view));
const octets = (view) => new Uint8Array(copied(view));
const clamp = (x, n) => Math.max(0, Math.min(n - 1, x));
const JAPANESE = /[\u3040-\u30ff\u4e00-\u9fff]/;
const digits = (x) => (Number.isFinite(x) ? Number(x.toPrecision(3)).toString() : "–");

// Puts values in place of the names in braces of a text, as Texts does in Python.
const worded = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

// Hides the picture that a notebook keeps of a view for readers without a kernel, as long as the view is there.
function hidesKept(model) {
  const style = document.head.appendChild(element("style"));
  const hide = () => { style.textContent = model.get("kept") ? `.${model.get("kept")} { display: none }` : ""; };
  hide();
  model.on("change:kept", hide);
  return () => { model.off("change:kept", hide); style.remove(); };
}

// Says above the view that no kernel answers, from when the notebook loses it until something comes from Python again.
function saysGone(model, el) {
  const line = element("div", { className: "moelens-gone", hidden: true, textContent: model.get("texts").gone });
  line.setAttribute("role", "status");
  el.prepend(line);
  const gone = () => { line.hidden = false; }, back = () => { line.hidden = true; };
  const events = { comm_live_update: gone, "change:heading": back, "change:message": back };
  for (const [name, handler] of Object.entries(events)) model.on(name, handler);
  return () => { for (const [name, handler] of Object.entries(events)) model.off(name, handler); };
}

// Adds listeners to the model; returns the function that removes them, which render returns in turn.
function listen(model, el, handlers) {
  for (const [name, handler] of Object.entries(handlers)) model.on(`change:${name}`, handler);
  const ends = [hidesKept(model), saysGone(model, el)];
  return () => {
    for (const end of ends) end();
    for (const [name, handler] of Object.entries(handlers)) model.off(`change:${name}`, handler);
  };
}

// Makes a node that receives keys. A notebook passes them on only if the data attribute is on the focusable node itself.
function takesKeys(node, description) {
  node.tabIndex = 0;
  node.dataset.lmSuppressShortcuts = "true";
  node.setAttribute("role", "application");
  node.setAttribute("aria-label", description);
  return node;
}

function choice(model, name, options, title, shown = (value) => value) {
  const select = element("select", { title });
  const option = (value) => element("option", { value, textContent: shown(value), lang: JAPANESE.test(shown(value)) ? "ja" : "en" });
  const fill = () => {
    select.replaceChildren(...model.get(options).map(option));
    select.value = model.get(name);
  };
  select.dataset.lmSuppressShortcuts = "true";
  select.addEventListener("change", () => {
    model.set(name, model.get(options).find((value) => `${value}` === select.value));
    model.save_changes();
  });
  fill();
  return [select, { [name]: fill, [options]: fill }];
}

// The colour of the text shows whether the page is dark; the theme of a notebook may differ from that of the system.
const isDark = (el) => Number(/^rgba?\((\d+)/.exec(getComputedStyle(el).color)?.[1]) > 127;

function onTheme(redraw) {
  const query = matchMedia("(prefers-color-scheme: dark)"), later = () => setTimeout(redraw, 50);
  const observer = new MutationObserver(later);
  observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
  query.addEventListener("change", later);
  return () => { observer.disconnect(); query.removeEventListener("change", later); };
}
