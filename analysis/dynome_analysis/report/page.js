"use strict";
Bokeh.set_log_level("warn");
// Draws the figures, and gives them the colours of the reader's light or dark system.
(() => {
  const {items, dark} = JSON.parse(document.getElementById("drawings").textContent);
  const places = [];  // [model, property, light colour, dark colour, whether it is a vector property]

  const note = (model) => {
    for (const property of model) {
      if (!property.attr.endsWith("color")) continue;
      const value = model[property.attr];
      const vector = value !== null && typeof value === "object" && "value" in value;
      const color = vector ? value.value : value;
      if (typeof color === "string" && color in dark) places.push([model, property.attr, color, dark[color], vector]);
    }
  };

  // A column of colours, one per row, is data: it is exchanged as a whole.
  const columns = [];
  const note_columns = (model) => {
    if (model.type !== "ColumnDataSource" || !("color" in model.data)) return;
    const light = Array.from(model.data.color);
    columns.push([model, light, light.map((color) => dark[color] ?? color)]);
  };

  const paint = (is_dark) => {
    for (const [model, attribute, light, night, vector] of places) {
      const color = is_dark ? night : light;
      model[attribute] = vector ? {value: color} : color;
    }
    for (const [model, light, night] of columns) {
      model.data = {...model.data, color: is_dark ? night : light};
    }
  };

  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const draw = async () => {
    for (const item of items) await Bokeh.embed.embed_item(item);
    for (const document_ of Bokeh.documents) {
      for (const model of document_._all_models.values()) {
        note(model);
        note_columns(model);
      }
    }
    paint(scheme.matches);
    scheme.addEventListener("change", () => paint(scheme.matches));
    window.addEventListener("beforeprint", () => paint(false));
    window.addEventListener("afterprint", () => paint(scheme.matches));
    for (const drawing of document.querySelectorAll(".drawing")) drawing.style.minHeight = "";
    document.documentElement.dataset.drawn = String(items.length);
  };
  draw();
})();
