// The browser of trajectories: a filtered list, and what was asked, done and answered in each step of the chosen one.

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

/** Where an item is from: RL, step 4, sample 1. */
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

function detail(item, back) {
  const gain = item.score != null
    ? el("p.gain", {}, `Best submission on the report labels: ${compact(item.score)}, from ${compact(item.start)} of the starting script`,
        item.gain != null ? ` (${percent(item.gain, true)})` : "", ".")
    : null;
  const holder = el("div");
  const show = (index) => {
    holder.replaceChildren(stepDetail(item.steps[index]));
    [...tabs.children].forEach((tab, at) => tab.setAttribute("aria-pressed", String(at === index)));
  };
  const tabs = el("div.tabs", { role: "group", "aria-label": "Steps" }, item.steps.map((step, index) =>
    el(`button.${OUTCOMES[step.kind] ? step.kind : "other"}`, { type: "button", click: () => show(index), title: OUTCOMES[step.kind] || step.kind }, el("i"), `${index + 1}`)));
  if (item.steps.length < 2) tabs.hidden = true;
  const node = el("div", {},
    el("div.detail-title", {}, el("button.back", { type: "button", click: back }, "‹ List"),
      el("h3", {}, item.task), el("span.where", {}, place(item))),
    gain, tabs, holder);
  if (item.steps.length) show(0);
  return node;
}

function drawTrajectories(body, items, totals) {
  if (!items.length) return body.replaceChildren(el("p.note", {}, "No steps yet: they appear when the first actions have been executed."));
  const state = { source: "", task: "", kind: "", text: "", chosen: null, limit: PAGE_SIZE };
  const searchable = items.map((item) => item.steps.map((step) => [step.action, step.output, step.diff].join("\n")).join("\n").toLowerCase());
  const unique = (values) => [...new Set(values)];
  const select = (label, field, options, name = (value) => value) => {
    const node = el("select", { "aria-label": label, change: (event) => { state[field] = event.currentTarget.value; filter(); } },
      el("option", { value: "" }, `All ${label}`), options.map((value) => el("option", { value }, name(value))));
    return node;
  };
  const sources = select("sources", "source", unique(items.map((item) => item.source)), sourceName);
  const tasks = select("tasks", "task", unique(items.map((item) => item.task)).sort());
  const kinds = select("outcomes", "kind", Object.keys(OUTCOMES).filter((kind) => items.some((item) => item.steps.some((step) => step.kind === kind))), (kind) => OUTCOMES[kind]);
  const search = el("input", { type: "search", placeholder: "Search text", "aria-label": "Search text", input: (event) => { state.text = event.currentTarget.value.toLowerCase(); filter(); } });
  const count = el("span.count", { "aria-live": "polite" });
  const list = el("ol.list");
  const view = el("div.detail");
  const panes = el("div.panes", {}, list, view);
  let shown = [];

  function row(index) {
    const item = items[index];
    const reward = meanReward(item);
    const kindsOf = item.steps.map((step) => step.kind);
    return el("li", {}, el("button.row", { type: "button", "aria-pressed": String(state.chosen === index), "data-index": index, click: () => choose(index, true) },
      el("span.row-task", {}, item.task),
      el("span.row-value", {}, item.gain != null ? percent(item.gain, true) : fixed(reward, 2)),
      el("span.row-where", {}, place(item)),
      kindsOf.length === 1 ? badge(kindsOf[0]) : el("span.dots", { title: kindsOf.map((kind) => OUTCOMES[kind] || kind).join(", ") },
        kindsOf.map((kind) => el(`i.${OUTCOMES[kind] ? kind : "other"}`)))));
  }

  function choose(index, open) {
    state.chosen = index;
    for (const button of list.querySelectorAll("button.row")) button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
    view.replaceChildren(index == null ? el("p.note", {}, "Nothing matches.") : detail(items[index], () => panes.classList.remove("open")));
    panes.classList.toggle("open", Boolean(open));
    if (open && matchMedia("(max-width: 760px)").matches) panes.scrollIntoView({ block: "start" });
  }

  function fillList() {
    list.replaceChildren(...shown.slice(0, state.limit).map(row));
    if (shown.length > state.limit) {
      list.append(el("li", {}, el("button.show-more", { type: "button", click: () => { state.limit += PAGE_SIZE; fillList(); } },
        `Show more (${shown.length - state.limit} left)`)));
    }
  }

  function filter() {
    shown = items.map((_, index) => index).filter((index) => {
      const item = items[index];
      return (!state.source || item.source === state.source) && (!state.task || item.task === state.task)
        && (!state.kind || item.steps.some((step) => step.kind === state.kind)) && (!state.text || searchable[index].includes(state.text));
    });
    state.limit = PAGE_SIZE;
    const all = Object.values(totals).reduce((sum, total) => sum + total, 0);
    count.textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`
      + (all > items.length ? ` shown; ${(all - items.length).toLocaleString("en")} more are in the run's folder` : "");
    fillList();
    choose(shown.includes(state.chosen) ? state.chosen : shown.length ? shown[0] : null, false);
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const at = shown.indexOf(state.chosen) + step;
    if (!step || at < 0 || at >= shown.length) return;
    event.preventDefault();
    if (at >= state.limit) { state.limit += PAGE_SIZE; fillList(); }
    choose(shown[at], false);
    list.querySelector('[aria-pressed="true"]').focus();
  });
  showTask = (task) => {
    tasks.value = state.task = task;
    filter();
  };
  body.replaceChildren(el("div.controls", {}, sources, tasks, kinds, search, count), panes);
  filter();
}
