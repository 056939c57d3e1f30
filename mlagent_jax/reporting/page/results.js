// Figures: the table of results with an interval plot in every row, and the tasks. Columns are the policies of a run, or
// the runs that are compared, by one policy.

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

/** Dots with 95% intervals, one line a column, on an axis from `low` to `high`. */
function intervalPlot(figures, format, [low, high]) {
  const [width, line, pad] = [200, 14, 6];
  const shown = figures.filter(([, found]) => found);
  if (!shown.length) return el("span", {}, NONE);
  if (low === high) [low, high] = [low - 1, high + 1];
  const x = (value) => pad + ((value - low) / (high - low)) * (width - 2 * pad);
  const height = shown.length * line + 4;
  return svg("svg.interval", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": shown.map(([column, { value }]) => `${column.name} ${format(value)}`).join(", ") },
    low < 0 && high > 0 ? svg("line.zero", { x1: x(0), x2: x(0), y1: 0, y2: height }) : null,
    shown.map(([column, { value, ci }], index) => {
      const y = 2 + line * (index + 0.5);
      return svg(`g.${column.tone}`, {},
        svg("title", {}, `${column.name} ${format(value)}${ci ? ` (95% interval ${format(ci[0])} to ${format(ci[1])})` : ""}`),
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

const resultsView = { policy: null, measure: "step_reward", sort: "task", descending: false };

/** Return the table columns: `{name, tone, scope}`, where the scope is a policy's figures, or null. */
function columnsOf({ runs, pooled }) {
  const known = Object.keys(POLICIES).filter((name) => runs.some((run) => run.summary.policies[name]));
  if (runs.length < 2) {
    const { policies } = runs[0].summary;
    return { columns: known.map((name) => ({ name: POLICIES[name], tone: name, scope: policies[name] })), known };
  }
  const policy = known.includes(resultsView.policy) ? resultsView.policy : known[known.length - 1];
  const columns = runs.map((run, index) => ({ name: run.name, tone: runTone(index), scope: run.summary.policies[policy] || null }));
  if (pooled && pooled.policies[policy]) columns.push({ name: "Pooled", tone: "pooled", scope: pooled.policies[policy] });
  return { columns, known, policy };
}

const columnHeader = (column) => el("th.number", { scope: "col" }, el(`span.key.${column.tone}`), column.name);

/** Of several runs, one policy's figures are compared. */
function policyChoice(known, policy, redraw) {
  if (!policy) return null;
  return segmented("Policy", Object.fromEntries(known.map((name) => [name, POLICIES[name]])), policy, (value) => {
    resultsView.policy = value;
    redraw();
  });
}

function drawResults(body, data, redraw) {
  const { columns, known, policy } = columnsOf(data);
  if (!columns.length) return body.replaceChildren(el("p.note", {}, "No policy has been evaluated yet."));
  const { comparisons } = data.runs[0].summary;
  const difference = policy ? null : comparisons.rl_minus_sft ? ["rl_minus_sft", "RL − SFT"] : comparisons.sft_minus_base ? ["sft_minus_base", "SFT − base"] : null;
  const rows = [];
  for (const measure of [MEASURES.valid, MEASURES.step_reward, MEASURES.gain_avg, MEASURES.gain_best]) {
    const splits = measure.field ? Object.keys(SPLITS) : [null];
    const found = splits.map((split) => [split, columns.map((column) => [column, figure(column.scope, measure, split)])])
      .filter(([, figures]) => figures.some(([, each]) => each));
    const range = extent(found.map(([, figures]) => figures));
    for (const [split, figures] of found) {
      const format = measure.format;
      rows.push(el("tr", {},
        el("th", { scope: "row" }, measure.name, split ? el("span.split", {}, SPLITS[split]) : null),
        el("td.plot-cell", {}, intervalPlot(figures, format, range)),
        figures.map(([column, each]) => figureCell(column.name, each, format)),
        difference ? figureCell(difference[1], measure.field && figure(comparisons[difference[0]], measure, split), format, true) : null));
    }
  }
  const lost = columns.map(({ scope }) => scope && scope.infrastructure_errors).filter(Boolean);
  const failed = lost.reduce((sum, { steps, episodes }) => sum + steps + episodes, 0);
  const sizes = columns.map(({ scope }) => scope && scope.step_reward).filter(Boolean)[0];
  const counted = sizes && Object.entries(sizes).map(([split, { n, states }]) => `${plural(n, "action")} in ${plural(states, "state")} ${SPLITS[split]}`).join(", ");
  body.replaceChildren(
    policy ? "" : el("p.finding", {}, data.runs[0].finding),
    policy ? el("div.controls", {}, policyChoice(known, policy, redraw)) : "",
    el("div.wide", {}, el("table.results", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Measure"), el("th.plot-cell", { scope: "col" }, ""), columns.map(columnHeader),
        difference ? el("th.number", { scope: "col" }, difference[1]) : null)),
      el("tbody", {}, rows))),
    el("p.note", {},
      "Means with 95% intervals. Valid actions: share of replies that are an action of the vocabulary. ",
      counted ? `Step reward: ${counted}, clustered by state; differences are paired by state. ` : "",
      "Gain: improvement over the starting script, relative to it, on labels used for nothing else; clustered by task.",
      policy ? " Pooled: all runs together, which means something where they differ in their seed alone." : "",
      columns.flatMap(({ name, scope }) => ((scope && scope.unplayed) || []).map((line) => el("strong", {}, ` ${name}: ${line}. `))),
      failed ? ` Left out because the infrastructure failed: ${failed} of the actions and episodes.` : ""));
}

function drawTasks(body, data, redraw) {
  const { columns, known, policy } = columnsOf(data);
  const scopes = columns.map((column) => column.scope && column.scope.tasks).filter(Boolean);
  const tasks = [...new Set(scopes.flatMap((scope) => Object.keys(scope)))].sort();
  if (!tasks.length) return body.replaceChildren(el("p.note", {}, "Tasks appear with the first evaluation."));
  const splitOf = (task) => Object.keys(SPLITS).find((split) => scopes.some((scope) => {
    const each = scope[task];
    return each && ((each.step_reward && each.step_reward[split]) || (each.relative_gain && each.relative_gain[split]));
  })) || "held_in";
  const state = resultsView;
  const holder = el("div.scroll");

  function draw() {
    const measure = MEASURES[state.measure];
    const rows = tasks.map((task) => ({
      task, split: splitOf(task), figures: columns.map((column) => [column, figure(column.scope && column.scope.tasks && column.scope.tasks[task], measure, splitOf(task))]),
    }));
    const range = extent(rows.map(({ figures }) => figures));
    const key = (row) => {
      const found = row.figures.find(([column]) => column.tone === state.sort);
      return state.sort === "task" ? row.task : state.sort === "split" ? row.split : found && found[1] ? found[1].value : -Infinity;
    };
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (typeof x === "string" ? x.localeCompare(y) : x === y ? 0 : x - y) * (state.descending ? -1 : 1) || a.task.localeCompare(b.task);
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
        columns.map((column) => header(column.tone, [el(`span.key.${column.tone}`), column.name], true)))),
      el("tbody", {}, rows.map(({ task, split, figures }) => el("tr", {},
        el("th", { scope: "row" }, el("a", { href: "#trajectories", click: () => showTask(task) }, task)),
        el("td.split-cell", {}, SPLITS[split]),
        el("td.plot-cell", {}, intervalPlot(figures, measure.format, range)),
        figures.map(([column, found]) => figureCell(column.name, found, measure.format)))))));
  }
  const options = Object.fromEntries(Object.entries(MEASURES).map(([name, measure]) => [name, measure.name]));
  body.replaceChildren(el("div.controls", {}, segmented("Measure", options, state.measure, (value) => { state.measure = value; draw(); }),
    policyChoice(known, policy, redraw)), holder);
  draw();
}
