// Live views in a file without a kernel. The page contains all slices that Python would send.
const packed = document.getElementById("moelens-data").textContent.replaceAll("-", "+").replaceAll("_", "/");
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const revive = (_, value) => (value && value.$bytes !== undefined ? new DataView(bytes(value.$bytes).buffer) : value);
const unpacked = new Blob([bytes(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
const { modules, views } = JSON.parse(await new Response(unpacked).text(), revive);

function standIn({ state, asks, slices }) {
  const values = { ...state }, listeners = {};
  let asked = false;
  const fire = (name) => [...(listeners[`change:${name}`] || [])].forEach((listener) => listener());
  return {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; asked ||= asks.includes(name); fire(name); },
    save_changes: () => {
      const slice = asked ? slices[JSON.stringify(asks.map((name) => values[name]))] : {};
      asked = false;
      Object.assign(values, slice);
      Object.keys(slice).forEach(fire);
    },
    on: (event, listener) => (listeners[event] ||= []).push(listener),
    off: (event, listener) => { listeners[event] = listeners[event].filter((other) => other !== listener); },
  };
}

for (const [at, view] of views.entries()) {
  const figure = document.getElementById(`live-${at}`), el = figure.querySelector(".live"), model = standIn(view);
  const module = await import(URL.createObjectURL(new Blob([modules[view.module]], { type: "text/javascript" })));
  await module.default.render({ model, el });
  figure.classList.add("alive");
  const cards = [...figure.querySelectorAll("[data-cell]")];
  const show = () => {
    const chosen = cards.find((card) => card.dataset.cell === `${model.get("selected")}`);
    for (const card of cards) card.hidden = card !== (chosen || cards[0]); // the first card says that this expert has none
  };
  model.on("change:selected", show);
  show();
}
