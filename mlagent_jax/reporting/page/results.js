// Figures: the table of results with an interval plot in every row, the tasks, the facts of the run.

const MEASURES = {
  step_reward: { name: "Step reward", field: "step_reward", value: "mean", format: fixed, interval: true },
  gain_avg: { name: "Gain, average", field: "relative_gain", value: "avg", format: percent, interval: true },
  gain_best: { name: "Gain, best", field: "relative_gain", value: "best", format: percent, interval: false },
  valid: { name: "Valid actions", format: percent, interval: false },
};

/** A figure `{value, ci, n}` of a policy or comparison, or null. */
function figure(scope, measure, split) {
  if (!scope) return null;
  if (!measure.field) return scope.valid_action_rate == null ? null : { value: scope.valid_action_rate };
  const fields = scope[measure.field] && scope[measure.field][split];
  return fields ? { value: fields[measure.value], ci: measure.interval ? fields.ci95 : null, n: fields.n } : null;
}

/** Lowest and highest end of all figures, for an axis that rows share. */
function extent(rows) {
  const ends = rows.flat().flatMap(([, found]) => (found ? [found.value, ...(found.ci || [])] : []));
  return [Math.min(...ends), Math.max(...ends)];
}

/** Dots with 95% intervals, one line a policy, on an axis from `low` to `high`. */
function intervalPlot(figures, format, [low, high]) {
  const [width, line, pad] = [200, 14, 6];
  const shown = figures.filter(([, found]) => found);
  if (!shown.length) return el("span", {}, NONE);
  if (low === high) [low, high] = [low - 1, high + 1];
  const x = (value) => pad + ((value - low) / (high - low)) * (width - 2 * pad);
  const height = shown.length * line + 4;
  return svg("svg.interval", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": shown.map(([name, { value }]) => `${POLICIES[name]} ${format(value)}`).join(", ") },
    low < 0 && high > 0 ? svg("line.zero", { x1: x(0), x2: x(0), y1: 0, y2: height }) : null,
    shown.map(([name, { value, ci }], index) => {
      const y = 2 + line * (index + 0.5);
      return svg(`g.${name}`, {},
        svg("title", {}, `${POLICIES[name]} ${format(value)}${ci ? ` (95% interval ${format(ci[0])} to ${format(ci[1])})` : ""}`),
        ci ? svg("line.whisker", { x1: x(ci[0]), x2: x(ci[1]), y1: y, y2: y }) : null,
        svg("circle", { cx: x(value), cy: y, r: 3.6 }));
    }));
}

function figureCell(label, found, format, signed = false) {
  const clear = signed && found && found.ci && (found.ci[0] > 0 || found.ci[1] < 0);
  const tone = clear ? (found.ci[0] > 0 ? ".up" : ".down") : "";
  const show = (value) => (format === fixed ? fixed(value, 3, signed) : percent(value, signed));
  return el(`td.number${tone}`, { "data-label": label },
    el("span.value", {}, found ? show(found.value) : NONE),
    found && found.ci ? el("span.ci", {}, `${show(found.ci[0])} … ${show(found.ci[1])}`) : null);
}

const policyHeader = (name) => el("th.number", { scope: "col" }, el(`span.key.${name}`), POLICIES[name]);

function drawResults(body, { policies, comparisons }) {
  const names = Object.keys(POLICIES).filter((name) => policies[name]);
  if (!names.length) return body.replaceChildren(el("p.note", {}, "No policy has been evaluated yet."));
  const difference = comparisons.rl_minus_sft ? ["rl_minus_sft", "RL − SFT"] : comparisons.sft_minus_base ? ["sft_minus_base", "SFT − base"] : null;
  const rows = [];
  for (const measure of [MEASURES.valid, MEASURES.step_reward, MEASURES.gain_avg, MEASURES.gain_best]) {
    const splits = measure.field ? Object.keys(SPLITS) : [null];
    const found = splits.map((split) => [split, names.map((name) => [name, figure(policies[name], measure, split)])])
      .filter(([, figures]) => figures.some(([, each]) => each));
    const range = extent(found.map(([, figures]) => figures));
    for (const [split, figures] of found) {
      const format = measure.format;
      rows.push(el("tr", {},
        el("th", { scope: "row" }, measure.name, split ? el("span.split", {}, SPLITS[split]) : null),
        el("td.plot-cell", {}, intervalPlot(figures, format, range)),
        figures.map(([name, found]) => figureCell(POLICIES[name], found, format)),
        difference ? figureCell(difference[1], measure.field && figure(comparisons[difference[0]], measure, split), format, true) : null));
    }
  }
  const lost = names.map((name) => policies[name].infrastructure_errors).filter(Boolean);
  const failed = lost.reduce((sum, { steps, episodes }) => sum + steps + episodes, 0);
  const sizes = names.map((name) => policies[name].step_reward && Object.values(policies[name].step_reward)).filter(Boolean)[0];
  body.replaceChildren(
    el("table.results", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Measure"), el("th.plot-cell", { scope: "col" }, ""), names.map(policyHeader),
        difference ? el("th.number", { scope: "col" }, difference[1]) : null)),
      el("tbody", {}, rows)),
    el("p.note", {},
      "Means with 95% intervals. ",
      sizes ? `Step reward: ${sizes.map(({ n, states }) => `${plural(n, "action")} in ${plural(states, "state")}`).join(" held-in, ")} held-out, clustered by state; differences are paired by state. ` : "",
      "Gain: improvement over the starting script, relative to it, on labels used for nothing else; clustered by task.",
      failed ? ` Left out because the infrastructure failed: ${failed} of the actions and episodes.` : ""));
}

function drawTasks(body, { policies }) {
  const names = Object.keys(POLICIES).filter((name) => policies[name]);
  const tasks = [...new Set(names.flatMap((name) => Object.keys(policies[name].tasks)))].sort();
  if (!tasks.length) return body.replaceChildren(el("p.note", {}, "Tasks appear with the first evaluation."));
  const splitOf = (task) => Object.keys(SPLITS).find((split) => names.some((name) => {
    const scope = policies[name].tasks[task];
    return scope && ((scope.step_reward && scope.step_reward[split]) || (scope.relative_gain && scope.relative_gain[split]));
  })) || "held_in";
  const state = { measure: "step_reward", sort: "task", descending: false };
  const holder = el("div.scroll");

  function draw() {
    const measure = MEASURES[state.measure];
    const rows = tasks.map((task) => {
      const split = splitOf(task);
      return { task, split, figures: names.map((name) => [name, figure(policies[name].tasks[task], measure, split)]) };
    });
    const range = extent(rows.map(({ figures }) => figures));
    const key = (row) => {
      const found = row.figures.find(([name]) => name === state.sort);
      return state.sort === "task" ? row.task : state.sort === "split" ? row.split : found && found[1] ? found[1].value : -Infinity;
    };
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (typeof x === "string" ? x.localeCompare(y) : x - y) * (state.descending ? -1 : 1) || a.task.localeCompare(b.task);
    });
    const header = (name, content, number) => el(number ? "th.number" : "th",
      { scope: "col", "aria-sort": state.sort === name ? (state.descending ? "descending" : "ascending") : null },
      el("button.sort", { type: "button", click: () => {
        state.descending = state.sort === name ? !state.descending : Boolean(number);
        state.sort = name;
        draw();
      } }, content));
    holder.replaceChildren(el("table.tasks", {},
      el("thead", {}, el("tr", {}, header("task", "Task"), header("split", "Split"), el("th.plot-cell", { scope: "col" }),
        names.map((name) => header(name, [el(`span.key.${name}`), POLICIES[name]], true)))),
      el("tbody", {}, rows.map(({ task, split, figures }) => el("tr", {},
        el("th", { scope: "row" }, el("a", { href: "#trajectories", click: () => showTask(task) }, task)),
        el("td.split-cell", {}, SPLITS[split]),
        el("td.plot-cell", {}, intervalPlot(figures, measure.format, range)),
        figures.map(([name, found]) => figureCell(POLICIES[name], found, measure.format)))))));
  }
  const options = Object.fromEntries(Object.entries(MEASURES).map(([name, measure]) => [name, measure.name]));
  body.replaceChildren(el("div.controls", {}, segmented("Measure", options, state.measure, (value) => { state.measure = value; draw(); })), holder);
  draw();
}

function drawFacts(node, run) {
  const seconds = Object.values(run.seconds || {}).reduce((sum, value) => sum + value, 0);
  const facts = [
    seconds ? duration(seconds) : null,
    run.executions != null ? plural(run.executions, "execution") : null,
    run.peak_memory_gb != null ? `${run.peak_memory_gb.toFixed(1)} GB peak` : null,
    run.sandbox ? `sandbox ${run.sandbox}` : null,
    run.seed != null ? `seed ${run.seed}` : null,
  ].filter(Boolean);
  node.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
}

function drawRun(body, run) {
  const seconds = Object.entries(run.seconds || {});
  const longest = Math.max(...seconds.map(([, value]) => value), 1e-9);
  const list = (pairs) => el("dl.facts-list", {}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  const bars = seconds.map(([stage, value]) => {
    const bar = svg("svg.stage-bar", { width: "100%", height: 8, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { width: `${Math.max(0.5, (100 * value) / longest)}%`, height: 8, rx: 2 }));
    return el("tr", {}, el("th", { scope: "row" }, stageName(stage)), el("td.bar-cell", {}, bar), el("td.number", {}, duration(value)));
  });
  const config = Object.keys(run.config || {}).length
    ? el("details", {}, el("summary", {}, "Configuration"), el("pre.code", {}, JSON.stringify(run.config, null, 2))) : null;
  body.replaceChildren(
    el("div.columns", {},
      bars.length ? el("div", {}, el("h3", {}, "Time by stage"), el("table.stages", {}, el("tbody", {}, bars))) : null,
      run.versions ? el("div", {}, el("h3", {}, "Versions"), list(Object.entries(run.versions))) : null),
    config || "");
}
