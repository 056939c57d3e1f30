// Time: an iteration as lanes, the trainer's parts above and the executions of each worker's slots below.

const timelineView = { run: 0, iteration: -1 };

function drawTimelines(body, runs) {
  const run = runs[Math.min(timelineView.run, runs.length - 1)];
  const redraw = () => drawTimelines(body, runs);
  const choice = runChoice(runs, timelineView.run, (index) => { timelineView.run = index; timelineView.iteration = -1; redraw(); });
  const shown = run.timelines;
  if (!shown.length) return body.replaceChildren(choice || "", el("p.note", {}, "No iteration of RL yet."));
  const at = timelineView.iteration < 0 ? shown.length - 1 : Math.min(timelineView.iteration, shown.length - 1);
  const { step, seconds, lanes, bound } = shown[at];
  const iterations = segmented("Iteration", Object.fromEntries(shown.map((each, index) => [String(index), `Iteration ${each.step}`])), String(at),
    (value) => { timelineView.iteration = Number(value); redraw(); });
  body.replaceChildren(
    el("div.controls", {}, choice, iterations),
    el("p.bound", {}, bound),
    el("div.timeline", {}, lanes.map(([name, kind, intervals]) => lane(name, kind, intervals, seconds))),
    el("p.note", {}, `Iteration ${step}: ${duration(seconds)} from left to right.`));
}

/** One row: its name, and a bar for each interval. */
function lane(name, kind, intervals, seconds) {
  const whole = seconds || 1;
  const total = intervals.reduce((sum, [from, to]) => sum + to - from, 0);
  const bars = intervals.map(([from, to]) => svg("rect.filled", { x: `${((100 * from) / whole).toFixed(3)}%`, width: `${Math.max(0.1, (100 * (to - from)) / whole).toFixed(3)}%`, height: 12, rx: 1 },
    svg("title", {}, `${duration(from)} to ${duration(to)}`)));
  return el("div.lane", {},
    el("span.lane-name", { title: name }, kind === "span" ? words(name) : name),
    svg(`svg.meter.${kind}`, { width: "100%", height: 12, role: "img", "aria-label": `${name}: ${duration(total)}` }, svg("rect.track", { width: "100%", height: 12, rx: 2 }), bars),
    el("span.lane-time", {}, duration(total)));
}
