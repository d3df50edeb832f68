// A slider or a list to choose from, the browser's own: they have an accessible name, and what is chosen goes
// to the kernel as a message. See labkit.live.controls for the reason.
function render({ model, el }) {
  const labels = model.get("labels");
  const label = document.createElement("label");
  const input = document.createElement(labels ? "select" : "input");
  const shown = document.createElement("output");
  el.classList.add("labkit-input");
  label.append(`${model.get("description")} `, input);
  if (labels) {
    input.append(...labels.map((text) => new Option(text)));
  } else {
    Object.assign(input, { type: "range", min: model.get("min"), max: model.get("max") });
    label.append(shown);
  }
  const update = () => {
    if (labels) input.selectedIndex = model.get("chosen");
    else input.value = shown.value = model.get("chosen");
  };
  input.addEventListener("input", () => { shown.value = input.value; });
  // "change" comes once, when a thumb is let go, and with each key
  input.addEventListener("change", () => model.send(labels ? input.selectedIndex : input.valueAsNumber));
  input.addEventListener("keydown", (event) => {
    if (/^(Arrow|Page|Home|End)/.test(event.key)) event.stopPropagation(); // JupyterLab would take them
  });
  model.on("change:chosen", update);
  el.append(label);
  update();
  return () => model.off("change:chosen", update);
}
export default { render };
