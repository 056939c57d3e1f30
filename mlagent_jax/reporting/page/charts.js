// Curves: small multiples by stage. Hovering reads every chart of a stage at the same place; dragging zooms them all.

const MARGIN = { top: 8, right: 10, bottom: 22, left: 46 };
const HEIGHT = 150;
// First what tells whether training works; the rest, alphabetically, behind them.
const PRIORITY = ["reward", "loss", "valid", "gain", "kl", "entropy", "value_loss", "policy_loss", "grad", "clip", "learning_rate"];

function priority(name) {
  const lower = name.toLowerCase();
  const exact = PRIORITY.findIndex((word) => lower === word);
  const close = PRIORITY.findIndex((word) => lower.includes(word));
  return exact >= 0 ? exact : close >= 0 ? close + 0.5 : PRIORITY.length;
}

/** Mean over neighbours weighted by a Gaussian whose width is `share` of the curve: smooth without lagging behind. */
function smooth(points, share) {
  const width = share * points.length;
  if (width < 0.5) return points;
  const reach = Math.ceil(3 * width);
  return points.map(([x, value, ...rest], centre) => {
    let sum = 0;
    let weights = 0;
    for (let at = Math.max(0, centre - reach); at <= Math.min(points.length - 1, centre + reach); at++) {
      const weight = Math.exp(-0.5 * ((at - centre) / width) ** 2);
      sum += weight * points[at][1];
      weights += weight;
    }
    return [x, sum / weights, ...rest];
  });
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

/** One chart of a group, which shares `range` (zoom), `axis`, and the place that is hovered over. */
function chart(group, curve) {
  const readout = el("span.readout");
  const plot = el("div.plot", { tabindex: 0, role: "img" });
  const node = el("figure.chart", {}, el("figcaption", {}, el("span.name", { title: curve.name }, words(curve.name)), readout), plot);
  let scale = null;
  let cursor = null;
  let points = [];

  function read(point, at) {
    readout.replaceChildren(at ? el("span.at", {}, at) : "", compact(point && point[1]));
  }

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    const raw = curve.points.map(([step, seconds, value]) => [group.axis === "step" ? step : seconds / 60, value, step]);
    points = smooth(raw, group.smoothing);
    const [x0, x1] = group.range;
    const inside = (line) => line.filter((point) => point[0] >= x0 && point[0] <= x1);
    const seen = inside(raw).map((point) => point[1]);
    let [y0, y1] = seen.length ? [Math.min(...seen), Math.max(...seen)] : [0, 1];
    if (y0 === y1) [y0, y1] = [y0 - Math.max(1e-6, Math.abs(y0) * 0.1), y1 + Math.max(1e-6, Math.abs(y1) * 0.1)];
    const pad = (y1 - y0) * 0.06;
    [y0, y1] = [y0 - pad, y1 + pad];
    scale = {
      x: (x) => MARGIN.left + ((x - x0) / (x1 - x0 || 1)) * (width - MARGIN.left - MARGIN.right),
      y: (y) => MARGIN.top + (1 - (y - y0) / (y1 - y0)) * (HEIGHT - MARGIN.top - MARGIN.bottom),
      invert: (pixel) => x0 + ((pixel - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (x1 - x0),
    };
    const path = (line) => line.map(([x, y], index) => `${index ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
    const clip = `clip-${group.id}-${curve.name.replace(/\W/g, "-")}`;
    const bottom = HEIGHT - MARGIN.bottom;
    const box = { x: MARGIN.left, y: MARGIN.top, width: Math.max(0, width - MARGIN.left - MARGIN.right), height: bottom - MARGIN.top };
    cursor = svg("g.cursor");
    plot.replaceChildren(
      svg("svg", { width, height: HEIGHT, "aria-hidden": "true" },
        svg("clipPath", { id: clip }, svg("rect", { ...box, y: 0, height: bottom + 2 })),
        ticks(y0, y1, 4).map((y) => [
          svg("line.grid", { x1: MARGIN.left, x2: width - MARGIN.right, y1: scale.y(y), y2: scale.y(y) }),
          svg("text.tick", { x: MARGIN.left - 6, y: scale.y(y) + 3.5, "text-anchor": "end" }, compact(y)),
        ]),
        ticks(x0, x1, Math.max(3, width / 55)).map((x) =>
          svg("text.tick", { x: scale.x(x), y: HEIGHT - 6, "text-anchor": "middle" }, compact(x))),
        svg("line.axis", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
        svg("g", { "clip-path": `url(#${clip})` },
          points === raw ? null : svg("path.raw", { d: path(raw) }),
          svg("path.line", { d: path(points) }),
          points.length <= 40 ? inside(points).map(([x, y]) => svg("circle.dot", { cx: scale.x(x), cy: scale.y(y), r: 2 })) : null),
        cursor),
    );
    const last = curve.points[curve.points.length - 1];
    plot.setAttribute("aria-label", `${words(curve.name)}: ${compact(last[2])} at step ${last[0]}`);
    read(points[points.length - 1]);
  }

  /** Show the value nearest to `x`, or the last one. */
  function hover(x) {
    if (!scale) return;
    cursor.replaceChildren();
    if (x == null || !points.length) return read(points[points.length - 1]);
    const point = nearest(points, x);
    const [px, py] = [scale.x(point[0]), scale.y(point[1])];
    cursor.append(
      svg("line", { x1: px, x2: px, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      svg("circle", { cx: px, cy: py, r: 3.5 }),
    );
    read(point, `step ${point[2]}`);
  }

  let start = null;
  const place = (event) => event.clientX - plot.getBoundingClientRect().left;
  plot.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0) {
      start = place(event);
      plot.setPointerCapture(event.pointerId);
    }
    group.hover(scale && scale.invert(place(event)));
  });
  plot.addEventListener("pointermove", (event) => {
    if (!scale) return;
    group.hover(scale.invert(place(event)));
    if (start != null) {
      const [from, to] = [start, place(event)].sort((a, b) => a - b);
      cursor.append(svg("rect.selection", { x: from, width: to - from, y: MARGIN.top, height: HEIGHT - MARGIN.top - MARGIN.bottom }));
    }
  });
  plot.addEventListener("pointerup", (event) => {
    if (start == null) return;
    const ends = [scale.invert(start), scale.invert(place(event))].sort((a, b) => a - b);
    if (Math.abs(place(event) - start) > 8) group.zoom(ends);
    start = null;
  });
  plot.addEventListener("pointerleave", () => start == null && group.hover(null));
  plot.addEventListener("dblclick", () => group.zoom(null));
  plot.addEventListener("keydown", (event) => {
    const [x0, x1] = group.range;
    const middle = (x0 + x1) / 2;
    if (event.key === "+") group.zoom([(x0 + middle) / 2, (x1 + middle) / 2]);
    else if (event.key === "-" || event.key === "Escape") group.zoom(null);
  });
  return { node, plot, draw, hover };
}

/** The charts of one stage. */
function stageCharts(stage, curves, settings, index) {
  const reset = el("button.reset", { type: "button", hidden: true, click: () => group.zoom(null) }, "Reset zoom");
  const group = {
    id: index,
    range: [0, 1],
    zoomed: null,
    get axis() { return settings.axis; },
    get smoothing() { return settings.smoothing; },
    hover: (x) => charts.forEach((each) => each.hover(x)),
    zoom: (range) => { group.zoomed = range; redraw(); },
  };
  const order = [...curves].sort((a, b) => priority(a.name) - priority(b.name) || a.name.localeCompare(b.name));
  const charts = order.map((curve) => chart(group, curve));
  function redraw() {
    const at = (point) => (settings.axis === "step" ? point[0] : point[1] / 60);
    const all = curves.flatMap((curve) => [at(curve.points[0]), at(curve.points[curve.points.length - 1])]);
    group.range = group.zoomed || [Math.min(...all), Math.max(...all)];
    reset.hidden = !group.zoomed;
    charts.forEach((each) => each.draw());
  }
  const few = charts.slice(0, 8).map((each) => each.node);
  const rest = charts.slice(8).map((each) => each.node);
  const more = rest.length ? el("details.more", { toggle: redraw }, el("summary", {}, plural(rest.length, "more curve")), el("div.charts", {}, rest)) : null;
  const node = el("div.stage", {}, el("div.stage-title", {}, el("h3", {}, stageName(stage)), reset), el("div.charts", {}, few), more);
  return { node, redraw, forget: () => { group.zoomed = null; } };
}

const stageName = (stage) => POLICIES[stage] || words(stage);

function drawCurves(body, curves) {
  if (!curves.length) return body.replaceChildren(el("p.note", {}, "No metrics yet: they appear with the first training step."));
  const settings = { axis: "step", smoothing: 0.02 };
  const stages = [...new Set(curves.map((curve) => curve.stage))];
  const groups = stages.map((stage, index) => stageCharts(stage, curves.filter((curve) => curve.stage === stage), settings, index));
  const redraw = () => groups.forEach((group) => group.redraw());
  const slider = el("input", {
    type: "range", min: 0, max: 10, step: 1, value: 2, "aria-label": "Smoothing",
    input: (event) => { settings.smoothing = event.currentTarget.value / 100; redraw(); },
  });
  const axis = segmented("Horizontal axis", { step: "Step", time: "Minutes" }, "step", (value) => {
    settings.axis = value;
    groups.forEach((group) => group.forget());
    redraw();
  });
  body.replaceChildren(
    el("div.controls", {}, axis, el("label.slider", {}, "Smoothing", slider),
      el("span.hint", {}, "Drag across a chart to zoom, double-click to go back.")),
    ...groups.map((group) => group.node),
  );
  redraw();
  new ResizeObserver(redraw).observe(body);
}
