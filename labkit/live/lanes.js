// The lanes of labkit.live.lanes: one bar a request, from sent to end. Messages bring only what is news.
const GUTTER = 30, TITLE = 18, AXIS = 18, RIGHT = 6; // px
const LOADED = 0.1; // s; less is no loading, see labkit.figures.lanes

export default () => {
  // shared by all views of one model, so that a cell that is run twice shows the same twice
  const views = new Set();
  let panels = [], lanes = new Map(), now = 0, seen = 0;

  function take(news) {
    if (news.reset) lanes = new Map();
    panels = news.panels;
    now = news.t;
    for (const [id, panel, number, sent, first, end, outcome, tokens, load, wait, basis, prefill] of news.lanes) {
      const ticks = lanes.get(id)?.ticks ?? [];
      lanes.set(id, { id, panel, number, sent, first, end, outcome, tokens, load, wait, basis, prefill, ticks });
      seen += 1;
    }
    for (const [id, ...times] of news.ticks) {
      lanes.get(id)?.ticks.push(...times);
      seen += times.length;
    }
    for (const id of news.gone) lanes.delete(id);
    for (const view of views) view.changed();
  }

  return {
    initialize({ model }) {
      model.on("msg:custom", take);
      model.send("hello"); // whatever came before this moment
      return () => model.off("msg:custom", take);
    },
    render({ model, el }) {
      const view = new View(el, model, () => ({ panels, lanes, now, seen }));
      views.add(view);
      return () => { views.delete(view); view.close(); };
    },
  };
};

class View {
  constructor(root, model, state) {
    this.root = root;
    this.rows = model.get("rows");
    this.places = model.get("places");
    this.state = state;
    this.colours = model.get("colours");
    this.striped = stripes(this.colours);
    this.height = Math.max(4, Math.min(14, Math.floor(224 / this.rows)));
    root.classList.add("labkit-lanes");
    root.dataset.points = 0;
    this.canvas = add(root, "canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-describedby", add(root, "div", {
      className: "hint", id: `labkit-${Math.random().toString(36).slice(2)}`,
      textContent: "A bar a request, top down as they were sent. Arrow keys or a click choose one.",
    }).id);
    add(root, "div", { className: "key", innerHTML: key(this.colours) });
    this.chosenText = add(root, "div", { className: "chosen" });
    this.chosenText.setAttribute("aria-live", "polite");
    this.counts = add(root, "div", { className: "counts" });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.resizing = new ResizeObserver(() => this.changed());
    this.resizing.observe(root);
    this.theme = new MutationObserver(() => this.changed()); // JupyterLab says its theme there
    this.theme.observe(document.body, { attributes: true });
    this.changed();
  }

  close() {
    this.resizing.disconnect();
    this.theme.disconnect();
    cancelAnimationFrame(this.frame);
  }

  changed() {
    this.frame ??= requestAnimationFrame(() => { this.frame = undefined; this.draw(); });
  }

  draw() {
    const { panels, lanes, now, seen } = this.state();
    const width = this.root.clientWidth;
    if (!width) return; // not on the page yet; the observer tells when it is
    const each = TITLE + this.rows * this.height + AXIS;
    const height = Math.max(this.places, panels.length) * each, ratio = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(this.root);
    const look = {
      ink: style.getPropertyValue("--jp-ui-font-color1") || style.color,
      soft: style.getPropertyValue("--jp-ui-font-color2") || style.color,
      page: style.getPropertyValue("--jp-layout-color0") || "white",
      grid: style.getPropertyValue("--jp-border-color2") || "#8884",
    };
    this.shown = panels.map((_, nth) => [...lanes.values()].filter((lane) => lane.panel === nth)
      .sort((a, b) => a.number - b.number).slice(-this.rows));
    const lasting = this.shown.flatMap((rows) => rows.map((lane) => (lane.end ?? now) - rows[0].sent));
    const [span, step] = nice(Math.max(0.1, ...lasting)); // one scale for all panels
    const scale = (width - GUTTER - RIGHT) / span;
    panels.forEach((panel, nth) => {
      const rows = this.shown[nth], top = nth * each + TITLE, start = rows[0]?.sent ?? 0;
      const at = (time) => GUTTER + (time - start) * scale;
      pen.font = `11px ${style.fontFamily}`;
      this.axis(pen, look, panel, { top, start, span, step, at, width });
      rows.forEach((lane, row) => {
        this.lane(pen, look, panel, lane, { top: top + row * this.height, at, now, width });
      });
    });
    this.words(panels);
    this.root.dataset.points = seen;
    this.root.dataset.time = now;
  }

  axis(pen, look, panel, { top, start, span, step, at, width }) {
    const bottom = top + this.rows * this.height;
    pen.fillStyle = look.ink;
    pen.textBaseline = "alphabetic";
    pen.fillText(panel.name + (panel.level ? `: ${panel.level}` : ""), 2, top - 6, width - 4);
    pen.strokeStyle = look.grid;
    pen.fillStyle = look.soft;
    pen.lineWidth = 1;
    for (let k = Math.ceil(start / step - 1e-9); k * step <= start + span; k += 1) {
      const x = Math.round(at(k * step)) + 0.5;
      line(pen, x, top, x, bottom);
      const text = `${+(k * step).toPrecision(6)} s`;
      if (x + pen.measureText(text).width < width) pen.fillText(text, x + 2, bottom + 12);
    }
    for (const time of panel.marks) { // where a level began
      if (time <= start) continue;
      pen.setLineDash([3, 3]);
      pen.strokeStyle = look.ink;
      line(pen, Math.round(at(time)) + 0.5, top, Math.round(at(time)) + 0.5, bottom);
      pen.setLineDash([]);
    }
  }

  lane(pen, look, panel, lane, { top, at, now, width }) {
    const tall = this.height > 6 ? this.height - 3 : this.height - 1;
    const until = lane.end ?? now, writing = lane.first ?? until;
    const box = (from, to, fill) => {
      pen.fillStyle = fill;
      pen.fillRect(at(from), top, Math.max(at(to) - at(from), 0.5), tall);
    };
    if (lane.wait === null) {
      box(lane.sent, writing, this.striped);
    } else { // the engine's own figures; they end where the first token came
      const load = lane.sent + (lane.load ?? 0), read = load + lane.wait;
      pen.strokeStyle = this.colours.prefill;
      if (lane.load > LOADED) pen.strokeRect(at(lane.sent) + 0.5, top + 0.5, at(load) - at(lane.sent), tall - 1);
      box(load, Math.min(read, writing), this.colours.waiting);
      box(Math.min(read, writing), writing, this.colours.prefill);
    }
    if (lane.first !== null) {
      box(writing, until, panel.colour);
      pen.fillStyle = look.page;
      let last = -Infinity;
      for (const time of lane.ticks) {
        if (at(time) - last < 3) continue;
        last = at(time);
        pen.fillRect(last, top + tall * 0.25, 1, tall * 0.5);
      }
    }
    if (this.height >= 10) {
      pen.fillStyle = look.soft;
      pen.fillText(lane.number, 2, top + tall - 1, GUTTER - 6);
    }
    if (lane.outcome && lane.outcome !== "ok") this.mark(pen, look, lane.outcome, at(until), top, tall, width);
    if (lane.id === this.chosen) {
      pen.strokeStyle = look.ink;
      pen.lineWidth = 1.5;
      pen.strokeRect(at(lane.sent) - 1, top - 1, Math.max(at(until) - at(lane.sent), 2) + 2, tall + 2);
    }
  }

  mark(pen, look, outcome, x, top, tall, width) { // by shape and word, so that colour is not needed
    const text = this.height >= 9 ? outcome : "", arm = Math.min(tall, 8) / 2, middle = top + tall / 2;
    const left = Math.min(x + 3, width - 2 * arm - 6 - pen.measureText(text).width);
    pen.fillStyle = look.page;
    if (text) pen.fillRect(left - 2, top, pen.measureText(text).width + 2 * arm + 8, tall);
    pen.strokeStyle = pen.fillStyle = look.ink;
    pen.lineWidth = 2;
    line(pen, left, middle - arm, left + 2 * arm, middle + arm);
    line(pen, left, middle + arm, left + 2 * arm, middle - arm);
    pen.fillText(text, left + 2 * arm + 4, top + tall - 1);
  }

  words(panels) {
    const told = panels.map(({ name, level, counts: [waiting, writing, ended, notWhole, tokens] }) =>
      `${name}${level ? `, ${level}` : ""}: ${waiting} waiting or in prefill, ${writing} writing, ${ended} ended, ` +
      `${notWhole} of them without a whole answer, ${tokens} tokens.`);
    if (told.join("\n") !== this.counts.textContent) this.counts.textContent = told.join("\n");
    this.canvas.setAttribute("aria-label", ["Requests over time, a bar each.", ...told].join(" "));
    const lane = this.state().lanes.get(this.chosen);
    const text = lane ? tell(panels[lane.panel], lane) : "";
    if (text !== this.chosenText.textContent) this.chosenText.textContent = text;
  }

  key(event) {
    const all = (this.shown ?? []).flat(), at = all.findIndex((lane) => lane.id === this.chosen);
    const to = { ArrowDown: at + 1, ArrowUp: at < 0 ? all.length - 1 : at - 1, Home: 0, End: all.length - 1 };
    if (event.key === "Escape") this.choose(undefined);
    else if (event.key in to) this.choose(all[Math.max(0, Math.min(to[event.key], all.length - 1))]);
    else return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would select another cell
  }

  click(event) {
    const each = TITLE + this.rows * this.height + AXIS, panel = Math.floor(event.offsetY / each);
    this.choose(this.shown?.[panel]?.[Math.floor((event.offsetY - panel * each - TITLE) / this.height)]);
  }

  choose(lane) {
    this.chosen = lane?.id;
    this.changed();
  }
}

function tell(panel, lane) { // without what grows from sample to sample: it is spoken each time it changes
  const told = [`${panel.name}, request ${lane.number}: sent at ${seconds(lane.sent)}`];
  if (lane.load > LOADED) told.push(`${seconds(lane.load)} loading the model`);
  if (lane.wait !== null) told.push(`${seconds(lane.wait)} waiting (${lane.basis})`);
  if (lane.prefill !== null) told.push(`${seconds(lane.prefill)} prefill`);
  told.push(lane.first === null ? "no token yet" : `first token after ${seconds(lane.first - lane.sent)}`);
  if (lane.end !== null) told.push(`${lane.tokens} tokens`, `ended after ${seconds(lane.end - lane.sent)}`);
  if (lane.outcome) told.push(lane.outcome);
  return `${told.join(", ")}.`;
}

const seconds = (value) => `${value.toFixed(2)} s`;

function nice(span) { // the next round number, and the distance of its ticks
  const unit = 10 ** Math.floor(Math.log10(span));
  const many = [1, 2, 5, 10].find((many) => many * unit >= span * 0.999);
  return [many * unit, many * unit / (many === 2 ? 4 : 5)];
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function add(parent, kind, what) {
  const made = Object.assign(document.createElement(kind), what);
  parent.append(made);
  return made;
}

function stripes({ waiting, prefill }) {
  const tile = Object.assign(document.createElement("canvas"), { width: 6, height: 6 });
  const pen = tile.getContext("2d");
  pen.fillStyle = waiting;
  pen.fillRect(0, 0, 6, 6);
  pen.strokeStyle = prefill;
  for (const shift of [-6, 0, 6]) line(pen, shift, 6, shift + 6, 0);
  return pen.createPattern(tile, "repeat");
}

const key = ({ waiting, prefill, ollama, vllm }) => `
<span><i style="background:repeating-linear-gradient(135deg,${waiting} 0 3px,${prefill} 3px 4px)"></i>waiting or
prefill</span> <span><i style="background:${waiting}"></i>waiting</span>
<span><i style="background:${prefill}"></i>prefill (told apart once the level has ended)</span>
<span><i style="border:1px solid ${prefill};box-sizing:border-box"></i>loading the model</span>
<span><i style="background:linear-gradient(90deg,${ollama} 50%,${vllm} 50%)"></i>writing, a tick a token</span>
<span>✕ no whole answer</span>`;
