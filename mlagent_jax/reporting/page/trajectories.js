// The trajectory browser: a filtered list, and prompt, action and output of each step of the selected one.

const OUTCOMES = {
  scored: "scored",
  no_edit: "no edit",
  script_error: "script error",
  invalid_action: "invalid action",
  time_limit: "time limit",
  memory_limit: "memory limit",
  infrastructure_error: "infrastructure error",
};
const PAGE_SIZE = 60;
let showTask = () => {};

const badge = (kind) => el(`span.badge.${OUTCOMES[kind] ? kind : "other"}`, {}, OUTCOMES[kind] || kind);
const sourceName = (source) => source.replace(/^evaluate (.*)$/, (_, policy) => `Evaluate ${POLICIES[policy] || policy}`).replace(/^(collect|rl|sft)$/, stageName);
const meanReward = (item) => {
  const rewards = item.steps.map((step) => step.reward).filter((reward) => reward != null);
  return rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
};

/** Return the origin of an item: RL, step 4, sample 1. */
function place(item) {
  const parts = [sourceName(item.source)];
  if (item.episode != null) parts.push(`${item.score != null ? "episode" : "trajectory"} ${item.episode}`);
  if (item.step != null) parts.push(`step ${item.step}`);
  if (item.sample != null) parts.push(`sample ${item.sample}`);
  return parts.join(", ");
}

function diffLines(diff) {
  return diff.replace(/\n$/, "").split("\n").map((line) => {
    const kind = /^(\+\+\+|---)/.test(line) ? "file" : line.startsWith("@@") ? "hunk" : line.startsWith("+") ? "add" : line.startsWith("-") ? "del" : "same";
    return el(`span.${kind}`, {}, `${line}\n`);
  });
}

function block(title, content, open = true) {
  return el("details.block", { open }, el("summary", {}, title), content);
}

function stepDetail(step) {
  const facts = [
    step.reward != null ? ["Reward", fixed(step.reward)] : null,
    step.after != null ? ["Metric", `${compact(step.before)} → ${compact(step.after)}`] : step.before != null ? ["Metric so far", compact(step.before)] : null,
    step.init != null ? ["Start, best known", `${compact(step.init)}, ${compact(step.best)}`] : null,
    step.seconds ? ["Execution", duration(step.seconds)] : null,
    step.name ? ["Action", step.name] : null,
    step.reason ? ["Reason", step.reason] : null,
  ].filter(Boolean);
  return el("div.step", {},
    el("div.step-facts", {}, badge(step.kind), el("dl", {}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))))),
    block("Prompt", el("pre.code", {}, step.prompt || ""), false),
    block("Action", el("pre.code", {}, step.action || "(empty)")),
    step.diff ? block("Diff", el("pre.code.diff", {}, diffLines(step.diff))) : null,
    step.output ? block("Output", el("pre.code.output", {}, step.output)) : null);
}

/** The selected entry. `view` keeps the open step, so that newer data does not close it. */
function detail(item, back, view) {
  const gain = item.score != null
    ? el("p.gain", {}, `Best submission on the report labels: ${compact(item.score)}, from ${compact(item.start)} of the starting script`,
        item.gain != null ? ` (${percent(item.gain, true)})` : "", ".")
    : null;
  const holder = el("div");
  const show = (index) => {
    view.step = index;
    holder.replaceChildren(stepDetail(item.steps[index]));
    [...tabs.children].forEach((tab, at) => tab.setAttribute("aria-pressed", String(at === index)));
  };
  const tabs = el("div.tabs", { role: "group", "aria-label": "Steps" }, item.steps.map((step, index) =>
    el(`button.${OUTCOMES[step.kind] ? step.kind : "other"}`, { type: "button", click: () => show(index), title: OUTCOMES[step.kind] || step.kind }, el("i"), `${index + 1}`)));
  if (item.steps.length < 2) tabs.hidden = true;
  const rewards = item.steps.length > 1 ? rewardBars(item, show) : null;
  const node = el("div", {},
    el("div.detail-title", {}, el("button.back", { type: "button", click: back }, "‹ List"),
      el("h3", {}, item.task), el("span.where", {}, place(item))),
    gain, rewards, tabs, holder);
  if (item.steps.length) show(Math.min(view.step, item.steps.length - 1));
  return node;
}

/** The rewards of an episode's steps at a glance: a bar each, up from zero or down. */
function rewardBars(item, show) {
  const rewards = item.steps.map((step) => step.reward);
  if (!rewards.some((reward) => reward)) return null;
  const [width, height] = [26, 44];
  const low = Math.min(0, ...rewards.map((reward) => reward || 0));
  const high = Math.max(0, ...rewards.map((reward) => reward || 0));
  const y = (value) => 2 + (1 - (value - low) / (high - low)) * (height - 4);
  return svg("svg.rewards", { width: width * rewards.length, height, role: "img", "aria-label": `Rewards: ${rewards.map((reward) => fixed(reward, 2)).join(", ")}` },
    rewards.map((reward, index) => svg(`g.${OUTCOMES[item.steps[index].kind] ? item.steps[index].kind : "other"}`, { click: () => show(index) },
      svg("title", {}, `Step ${index + 1}: ${fixed(reward)}`),
      svg("rect.hit", { x: index * width, y: 0, width, height }),
      svg("rect", { x: index * width + 5, width: width - 10, y: Math.min(y(0), y(reward || 0)), height: Math.max(1, Math.abs(y(0) - y(reward || 0))) }))),
    svg("line.zero", { x1: 0, x2: width * rewards.length, y1: y(0), y2: y(0) }));
}

/** User selections, kept when newer data is drawn. */
const trajectoriesView = { run: "", source: "", task: "", kind: "", text: "", order: "", chosen: null, step: 0, limit: PAGE_SIZE, open: false };
const ORDERS = { "": "In the run's order", newest: "Newest first", best: "Best first", worst: "Worst first" };

function drawTrajectories(body, runs) {
  const view = trajectoriesView;
  const items = runs.flatMap((run, index) => run.trajectories.map((item) => ({ ...item, run: run.name, tone: runs.length > 1 ? runTone(index) : null })));
  const all = runs.reduce((sum, run) => sum + Object.values(run.totals).reduce((total, each) => total + each, 0), 0);
  if (!items.length) return body.replaceChildren(el("p.note", {}, "No steps yet: they appear when the first actions have been executed."));
  // An entry is the same in newer data if its origin is the same.
  const keys = items.map((item) => JSON.stringify([item.run, item.source, item.task, item.split, item.episode, item.step, item.sample, item.steps.map((step) => step.action)]));
  const searchable = items.map((item) => item.steps.map((step) => [step.action, step.output, step.diff].join("\n")).join("\n").toLowerCase());
  const unique = (values) => [...new Set(values)];
  const select = (label, field, options, name = (value) => value, none = `All ${label}`) => el("select", { "aria-label": label, change: (event) => { view[field] = event.currentTarget.value; filter(true); } },
    el("option", { value: "", selected: !view[field] }, none), options.map((value) => el("option", { value, selected: view[field] === value }, name(value))));
  const names = runs.length > 1 ? select("runs", "run", runs.map((run) => run.name)) : null;
  const sources = select("sources", "source", unique(items.map((item) => item.source)), sourceName);
  const tasks = select("tasks", "task", unique(items.map((item) => item.task)).sort());
  const kinds = select("outcomes", "kind", Object.keys(OUTCOMES).filter((kind) => items.some((item) => item.steps.some((step) => step.kind === kind))), (kind) => OUTCOMES[kind]);
  const orders = select("order", "order", Object.keys(ORDERS).filter(Boolean), (order) => ORDERS[order], ORDERS[""]);
  const search = el("input", { type: "search", placeholder: "Search text", "aria-label": "Search text", value: view.text, input: (event) => { view.text = event.currentTarget.value.toLowerCase(); filter(true); } });
  const count = el("span.count", { "aria-live": "polite" });
  const list = el("ol.list");
  const pane = el("div.detail");
  const panes = el("div.panes", {}, list, pane);
  let shown = [];

  function row(index) {
    const item = items[index];
    const kindsOf = item.steps.map((step) => step.kind);
    return el("li", {}, el("button.row", { type: "button", "aria-pressed": String(view.chosen === keys[index]), "data-index": index, click: () => { view.step = 0; choose(index, true); } },
      el("span.row-task", {}, item.tone ? el(`span.key.${item.tone}`) : null, item.task),
      el("span.row-value", {}, item.gain != null ? percent(item.gain, true) : fixed(meanReward(item), 2)),
      el("span.row-where", {}, place(item)),
      kindsOf.length === 1 ? badge(kindsOf[0]) : el("span.dots", { title: kindsOf.map((kind) => OUTCOMES[kind] || kind).join(", ") },
        kindsOf.map((kind) => el(`i.${OUTCOMES[kind] ? kind : "other"}`)))));
  }

  function choose(index, open) {
    view.chosen = index == null ? null : keys[index];
    for (const button of list.querySelectorAll("button.row")) button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
    pane.replaceChildren(index == null ? el("p.note", {}, "Nothing matches.") : detail(items[index], () => { view.open = false; panes.classList.remove("open"); }, view));
    view.open = Boolean(open);
    panes.classList.toggle("open", view.open);
    if (open && matchMedia("(max-width: 760px)").matches) panes.scrollIntoView({ block: "start" });
  }

  function fillList() {
    list.replaceChildren(...shown.slice(0, view.limit).map(row));
    if (shown.length > view.limit) {
      list.append(el("li", {}, el("button.show-more", { type: "button", click: () => { view.limit += PAGE_SIZE; fillList(); } },
        `Show more (${shown.length - view.limit} left)`)));
    }
  }

  const score = (item) => (item.gain != null ? item.gain : meanReward(item));
  const compare = {
    newest: (a, b) => (items[b].step || 0) - (items[a].step || 0) || b - a,
    best: (a, b) => (score(items[b]) ?? -Infinity) - (score(items[a]) ?? -Infinity) || a - b,
    worst: (a, b) => (score(items[a]) ?? Infinity) - (score(items[b]) ?? Infinity) || a - b,
  };

  /** Fill the list; `anew` means that the filter has changed. */
  function filter(anew) {
    shown = items.map((_, index) => index).filter((index) => {
      const item = items[index];
      return (!view.run || item.run === view.run) && (!view.source || item.source === view.source) && (!view.task || item.task === view.task)
        && (!view.kind || item.steps.some((step) => step.kind === view.kind)) && (!view.text || searchable[index].includes(view.text));
    });
    if (view.order) shown.sort(compare[view.order]);
    if (anew) view.limit = PAGE_SIZE;
    count.textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`
      + (all > items.length ? ` shown; ${(all - items.length).toLocaleString("en")} more are in the run's folder` : "");
    fillList();
    const chosen = keys.indexOf(view.chosen);
    const same = shown.includes(chosen);
    if (!same) view.step = 0;
    choose(same ? chosen : shown.length ? shown[0] : null, !anew && view.open && same);
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const at = shown.indexOf(keys.indexOf(view.chosen)) + step;
    if (!step || at < 0 || at >= shown.length) return;
    event.preventDefault();
    if (at >= view.limit) { view.limit += PAGE_SIZE; fillList(); }
    view.step = 0;
    choose(shown[at], false);
    list.querySelector('[aria-pressed="true"]').focus();
  });
  showTask = (task) => {
    tasks.value = view.task = task;
    filter(true);
  };
  const scrolled = [body.querySelector(".list"), body.querySelector(".detail")].map((node) => (node ? node.scrollTop : 0));
  body.replaceChildren(el("div.controls", {}, names, sources, tasks, kinds, orders, search, count), panes);
  filter(false);
  [list.scrollTop, pane.scrollTop] = scrolled;
}
