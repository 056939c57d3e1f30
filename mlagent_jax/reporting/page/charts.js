// Curves: small multiples by stage. Hovering reads all charts of a stage at the same position; dragging zooms them.

const MARGIN = { top: 8, right: 10, bottom: 22, left: 60 };
const HEIGHT = 150;
// Scalars that show whether training works come first, the rest alphabetically.
const PRIORITY = ["reward", "loss", "valid", "gain", "kl", "entropy", "value_loss", "policy_loss", "grad", "clip", "learning_rate"];

/** What a scalar is, in one sentence. */
const MEANINGS = {
  reward: "Mean reward of the actions of an iteration. Up is better.",
  valid: "Share of replies that are an action. Near 1 after sft.",
  loss: "Mean negative log-probability of the expert's tokens, nats. Down is better.",
  kl: "Distance from the sft policy, nats a token. Slow growth is normal; config.rl.max_kl stops the run.",
  entropy: "Spread of the policy's choices, nats a token. Falls as it becomes sure; near 0 it explores no more.",
  value_loss: "Error of the critic's forecast of rewards. Down is better.",
  policy_loss: "Objective of the update; its sign and size say little across iterations.",
  grad_norm: "Length of the gradient before clipping. A jump announces divergence.",
  clip_fraction: "Share of tokens whose change the loss cut off.",
  explained_variance: "Share of the rewards' variance that the critic foresees; 1 is all, below 0 is worse than a constant.",
  effective_samples: "Share of a batch's tokens that count after importance weights. 1: sampled by this very policy.",
  learning_rate: "Step size of the optimizer.",
  masked: "Actions of the iteration that the infrastructure failed at; they train nothing.",
  silent_groups: "Share of groups with equal rewards, from which a relative advantage learns nothing.",
  unchanged: "Share of actions that changed nothing that is scored.",
  pool: "States from which rl draws.",
  staleness: "Policy versions between sampling and training of an action.",
  seconds_wait: "Time in which devices waited for executions. More workers lower it.",
  seconds_sample: "Time of sampling actions.",
  seconds_update: "Time of the update.",
  seconds_execute: "Time of scripts, summed over workers.",
};

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

/** One chart of a group that shares `range` (zoom), `axis` and hover position; one line per run. */
function chart(group, { name, lines }) {
  const readout = el("span.readout");
  const plot = el("div.plot", { tabindex: 0, role: "img" });
  const node = el("figure.chart", {}, el("figcaption", {}, el("span.name", { title: name }, words(name)), readout), plot,
    MEANINGS[name] ? el("p.meaning", {}, MEANINGS[name]) : null);
  let scale = null;
  let cursor = null;
  let drawn = [];

  function read(points, at) {
    readout.replaceChildren(at ? el("span.at", {}, at) : "",
      ...points.map(([line, point]) => el(`span.${line.tone}`, { title: line.run }, compact(point && point[1]))));
  }
  const readLast = () => read(drawn.map(([line, , points]) => [line, points[points.length - 1]]));

  function draw() {
    const width = plot.clientWidth;
    if (!width) return;
    drawn = lines.filter((line) => !group.hidden.has(line.run)).map((line) => {
      const raw = line.points.map(([step, seconds, value]) => [group.axis === "step" ? step : seconds / 60, value, step]);
      return [line, raw, smooth(raw, group.smoothing)];
    });
    const [x0, x1] = group.range;
    const inside = (points) => points.filter((point) => point[0] >= x0 && point[0] <= x1);
    const seen = drawn.flatMap(([, raw]) => inside(raw)).map((point) => point[1]);
    let [y0, y1] = seen.length ? [Math.min(...seen), Math.max(...seen)] : [0, 1];
    if (y0 === y1) [y0, y1] = [y0 - Math.max(1e-6, Math.abs(y0) * 0.1), y1 + Math.max(1e-6, Math.abs(y1) * 0.1)];
    const pad = (y1 - y0) * 0.06;
    [y0, y1] = [y0 - pad, y1 + pad];
    scale = {
      x: (x) => MARGIN.left + ((x - x0) / (x1 - x0 || 1)) * (width - MARGIN.left - MARGIN.right),
      y: (y) => MARGIN.top + (1 - (y - y0) / (y1 - y0)) * (HEIGHT - MARGIN.top - MARGIN.bottom),
      invert: (pixel) => x0 + ((pixel - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (x1 - x0),
      width: width - MARGIN.left - MARGIN.right,
    };
    const path = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join("");
    const clip = `clip-${group.id}-${name.replace(/\W/g, "-")}`;
    const bottom = HEIGHT - MARGIN.bottom;
    const box = { x: MARGIN.left, y: MARGIN.top, width: Math.max(0, scale.width), height: bottom - MARGIN.top };
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
          drawn.map(([line, raw, points]) => svg(`g.${line.tone}`, {},
            points === raw || drawn.length > 3 ? null : svg("path.raw", { d: path(raw) }),
            svg("path.line", { d: path(points) }),
            points.length <= 40 ? inside(points).map(([x, y]) => svg("circle.dot", { cx: scale.x(x), cy: scale.y(y), r: 2 })) : null))),
        cursor),
    );
    plot.setAttribute("aria-label", lines.map((line) => {
      const last = line.points[line.points.length - 1];
      return `${lines.length > 1 ? `${line.run} ` : ""}${words(name)}: ${compact(last[2])} at step ${last[0]}`;
    }).join(", "));
    readLast();
  }

  /** Show the values nearest to `x`, or the last ones. */
  function hover(x) {
    if (!scale) return;
    cursor.replaceChildren();
    if (x == null || !drawn.length) return readLast();
    const found = drawn.filter(([, , points]) => points.length).map(([line, , points]) => [line, nearest(points, x)]);
    if (!found.length) return;
    cursor.append(svg("line", { x1: scale.x(found[0][1][0]), x2: scale.x(found[0][1][0]), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    for (const [line, point] of found) cursor.append(svg(`circle.${line.tone}`, { cx: scale.x(point[0]), cy: scale.y(point[1]), r: 3.5 }));
    read(found, `step ${found[0][1][2]}`);
  }

  let start = null;
  const fingers = new Map();
  const place = (event) => event.clientX - plot.getBoundingClientRect().left;
  plot.addEventListener("pointerdown", (event) => {
    if (!scale) return;
    if (event.pointerType === "mouse" && event.button === 0) {
      start = place(event);
      plot.setPointerCapture(event.pointerId);
    }
    // A finger keeps the point of the curve that it touched.
    if (event.pointerType === "touch") fingers.set(event.pointerId, { at: place(event), holds: scale.invert(place(event)) });
    group.hover(scale.invert(place(event)));
  });
  plot.addEventListener("pointermove", (event) => {
    if (!scale) return;
    if (fingers.has(event.pointerId)) {
      fingers.get(event.pointerId).at = place(event);
      if (fingers.size === 2) return pinch();
    }
    group.hover(scale.invert(place(event)));
    if (start != null) {
      const [from, to] = [start, place(event)].sort((a, b) => a - b);
      cursor.append(svg("rect.selection", { x: from, width: to - from, y: MARGIN.top, height: HEIGHT - MARGIN.top - MARGIN.bottom }));
    }
  });
  /** Return the range in which two fingers keep the points that they touched. */
  function pinch() {
    const [a, b] = [...fingers.values()].sort((one, other) => one.holds - other.holds);
    if (b.at - a.at < 12 || b.holds <= a.holds) return;
    const perPixel = (b.holds - a.holds) / (b.at - a.at);
    const from = a.holds - (a.at - MARGIN.left) * perPixel;
    const [low, high] = group.whole;
    const ends = [Math.max(low, from), Math.min(high, from + scale.width * perPixel)];
    group.zoom(ends[0] <= low && ends[1] >= high ? null : ends);
  }
  plot.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    if (start == null) return;
    const ends = [scale.invert(start), scale.invert(place(event))].sort((a, b) => a - b);
    if (Math.abs(place(event) - start) > 8) group.zoom(ends);
    start = null;
  });
  plot.addEventListener("pointercancel", (event) => { fingers.delete(event.pointerId); start = null; });
  plot.addEventListener("pointerleave", () => start == null && group.hover(null));
  plot.addEventListener("dblclick", () => group.zoom(null));
  plot.addEventListener("keydown", (event) => {
    const [x0, x1] = group.range;
    const quarter = (x1 - x0) / 4;
    if (event.key === "+") group.zoom([x0 + quarter, x1 - quarter]);
    else if (event.key === "ArrowRight") group.zoom([x0 + quarter, x1 + quarter]);
    else if (event.key === "ArrowLeft") group.zoom([x0 - quarter, x1 - quarter]);
    else if (event.key === "-" || event.key === "Escape") group.zoom(null);
    else return;
    event.preventDefault();
  });
  return { node, draw, hover };
}

/** User settings, kept when newer data is drawn. */
const curvesView = { axis: "step", smoothing: 0.02, zoom: {}, more: {}, hidden: new Set() };

/** The charts of one stage. */
function stageCharts(stage, curves, index) {
  const reset = el("button.reset", { type: "button", hidden: true, click: () => group.zoom(null) }, "Reset zoom");
  const group = {
    id: index,
    range: [0, 1],
    whole: [0, 1],
    hidden: curvesView.hidden,
    get axis() { return curvesView.axis; },
    get smoothing() { return curvesView.smoothing; },
    hover: (x) => charts.forEach((each) => each.hover(x)),
    zoom: (range) => { curvesView.zoom[stage] = range; redraw(); },
  };
  const varies = (name) => curves.some((curve) => curve.name === name && curve.points.some((point) => point[2] !== curve.points[0][2]));
  const names = [...new Set(curves.map((curve) => curve.name))]
    .sort((a, b) => varies(b) - varies(a) || priority(a) - priority(b) || a.localeCompare(b));
  const charts = names.map((name) => chart(group, { name, lines: curves.filter((curve) => curve.name === name) }));
  function redraw() {
    const at = (point) => (curvesView.axis === "step" ? point[0] : point[1] / 60);
    const all = curves.filter((curve) => !curvesView.hidden.has(curve.run)).flatMap((curve) => [at(curve.points[0]), at(curve.points[curve.points.length - 1])]);
    group.whole = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
    group.range = curvesView.zoom[stage] || group.whole;
    reset.hidden = !curvesView.zoom[stage];
    charts.forEach((each) => each.draw());
  }
  const few = charts.slice(0, 8).map((each) => each.node);
  const rest = charts.slice(8).map((each) => each.node);
  const more = rest.length
    ? el("details.more", { open: Boolean(curvesView.more[stage]), toggle: (event) => { curvesView.more[stage] = event.currentTarget.open; redraw(); } },
        el("summary", {}, plural(rest.length, "more curve")), el("div.charts", {}, rest))
    : null;
  const node = el("div.stage", {}, el("div.stage-title", {}, el("h3", {}, stageName(stage)), reset), el("div.charts", {}, few), more);
  return { node, redraw };
}

const stageName = (stage) => POLICIES[stage] || words(stage);
let watched = null;

function drawCurves(body, runs) {
  if (watched) watched.disconnect();
  const several = runs.length > 1;
  const curves = runs.flatMap((run, index) => run.curves.map((curve) => ({ ...curve, run: run.name, tone: several ? runTone(index) : "own" })));
  if (!curves.length) return body.replaceChildren(el("p.note", {}, "No metrics yet: they appear with the first training step."));
  const stages = [...new Set(curves.map((curve) => curve.stage))];
  const groups = stages.map((stage, index) => stageCharts(stage, curves.filter((curve) => curve.stage === stage), index));
  const redraw = () => groups.forEach((group) => group.redraw());
  const slider = el("input", {
    type: "range", min: 0, max: 10, step: 1, value: curvesView.smoothing * 100, "aria-label": "Smoothing",
    input: (event) => { curvesView.smoothing = event.currentTarget.value / 100; redraw(); },
  });
  const axis = segmented("Horizontal axis", { step: "Step", time: "Minutes" }, curvesView.axis, (value) => {
    curvesView.axis = value;
    curvesView.zoom = {};
    redraw();
  });
  const legend = several ? el("div.legend", {}, runs.map((run, index) => el("button", {
    type: "button", "aria-pressed": String(!curvesView.hidden.has(run.name)),
    click: (event) => {
      if (!curvesView.hidden.delete(run.name)) curvesView.hidden.add(run.name);
      event.currentTarget.setAttribute("aria-pressed", String(!curvesView.hidden.has(run.name)));
      redraw();
    },
  }, el(`span.key.${runTone(index)}`), run.name))) : null;
  body.replaceChildren(
    el("div.controls", {}, axis, el("label.slider", {}, "Smoothing", slider), legend,
      el("span.hint", {}, matchMedia("(pointer: coarse)").matches ? "Two fingers zoom, a double tap goes back." : "Drag across a chart to zoom, double-click to go back.")),
    ...groups.map((group) => group.node),
  );
  redraw();
  watched = new ResizeObserver(redraw);
  watched.observe(body);
}
