// A labelled range input: the browser's own has an accessible name, which ipywidgets' slider lacks.
function render({ model, el }) {
  const name = document.createElement("label");
  const input = document.createElement("input");
  const shown = document.createElement("output");
  el.classList.add("labkit-slider");
  input.type = "range";
  name.append(input, shown);
  name.prepend(model.get("description"));
  const update = () => {
    input.min = model.get("min");
    input.max = model.get("max");
    input.value = shown.value = model.get("value");
  };
  input.addEventListener("input", () => { shown.value = input.value; });
  // "change" comes once, when the thumb is let go, and with each key
  input.addEventListener("change", () => {
    model.set("value", input.valueAsNumber);
    model.save_changes();
  });
  input.addEventListener("keydown", (event) => {
    if (/^(Arrow|Page|Home|End)/.test(event.key)) event.stopPropagation(); // JupyterLab would take them
  });
  model.on("change", update);
  el.append(name);
  update();
  return () => model.off("change", update);
}
export default { render };
