// Initial states of step-wise RL: the pool by task and depth, and statistics of the actions sampled in them.

const statesView = { run: 0, measure: "reward", list: false, limit: 40 };
const STATE_MEASURES = {
  reward: { name: "Mean reward", of: (cell) => cell.reward, show: (value) => fixed(value, 2) },
  spread: { name: "Spread of rewards", of: (cell) => cell.spread, show: (value) => fixed(value, 2) },
  actions: { name: "Actions", of: (cell) => cell.actions || null, show: (value) => String(value) },
  pool: { name: "States", of: (cell) => cell.expert + cell.own || null, show: (value) => String(value) },
};

function drawStates(body, runs) {
  const run = runs[Math.min(statesView.run, runs.length - 1)];
  const { cells, expert, drawn, own, newest } = run.states;
  const redraw = () => drawStates(body, runs);
  const choice = runChoice(runs, statesView.run, (index) => { statesView.run = index; redraw(); });
  if (!cells.length) {
    return body.replaceChildren(choice || "", el("p.note", {}, "No states yet: they are cut from the expert's trajectories once those are collected."));
  }
  const measure = STATE_MEASURES[statesView.measure];
  const depths = [...new Set(cells.map((cell) => cell.depth))].sort((a, b) => a - b);
  const tasks = [...new Set(cells.map((cell) => cell.task))].sort();
  const found = new Map(cells.map((cell) => [`${cell.depth} ${cell.task}`, cell]));
  const values = cells.map(measure.of).filter((value) => value != null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const shade = (value) => (high > low ? (value - low) / (high - low) : 0.5);
  const square = (task, depth) => {
    const cell = found.get(`${depth} ${task}`);
    const value = cell ? measure.of(cell) : null;
    const about = cell
      ? `${task}, depth ${depth}: ${plural(cell.expert, "state")} of the expert, ${cell.own} of the policy's own drawn; ${plural(cell.actions, "action")} from ${plural(cell.drawn, "state")}`
        + (cell.reward == null ? "" : `, mean reward ${fixed(cell.reward)}`)
      : "";
    if (!cell) return el("td");
    const tone = value == null ? "empty" : `shade${Math.round(shade(value) * 8)}`;
    return el("td", {}, el(`span.square.${tone}`, { title: about }, value == null ? "·" : measure.show(value)));
  };
  const options = Object.fromEntries(Object.entries(STATE_MEASURES).map(([name, each]) => [name, each.name]));
  const listed = newest.slice(0, statesView.limit);
  body.replaceChildren(
    el("div.controls", {}, choice, segmented("Measure of states", options, statesView.measure, (value) => { statesView.measure = value; redraw(); })),
    el("p.note", {}, `${plural(expert, "state")} cut from the expert's trajectories; ${plural(drawn, "state")} drawn so far`,
      own ? `, of which the policy itself reached ${own.toLocaleString("en")}` : "", ". Depth: steps taken before the state."),
    el("div.scroll", {}, el("table.matrix", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Task"), depths.map((depth) => el("th", { scope: "col" }, depth === depths[0] ? `Depth ${depth}` : String(depth))))),
      el("tbody", {}, tasks.map((task) => el("tr", {},
        el("th", { scope: "row" }, el("a", { href: "#trajectories", click: () => showTask(task) }, task)),
        depths.map((depth) => square(task, depth))))))),
    newest.length ? el("details.more", { open: statesView.list, toggle: (event) => { statesView.list = event.currentTarget.open; } },
      el("summary", {}, "States drawn last"),
      plainTable(".list-table", [["Iteration", true], ["Task"], ["State"], ["Depth", true], ["Metric", true], ["Actions", true], ["Reward", true], ["Spread", true]],
        listed.map((state) => [state.last, state.task, [el("code", {}, state.id), state.own ? el("span.tag", {}, "own") : null], state.depth, compact(state.metric), state.actions, fixed(state.reward, 2), fixed(state.spread, 2)])),
      newest.length > statesView.limit ? el("button.show-more", { type: "button", click: () => { statesView.limit += 80; redraw(); } }, `Show more (${newest.length - statesView.limit} left)`) : null) : "");
}
