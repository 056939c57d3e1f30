// Building blocks: elements, numbers as text. Text from data enters the document here and only as text nodes.

/** An element: el("td.number", {title: "..."}, "text", child, null, [more]). Strings become text nodes. */
function el(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  return fill(document.createElement(tag), classes, attributes, children);
}

/** The same for SVG. */
function svg(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, attributes, children);
}

function fill(node, classes, attributes, children) {
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

const NONE = "–";
const MINUS = "−";

/** Format a number briefly: 0.0123, 4.51, 18 400, 2.1e-7. */
function compact(value) {
  if (value == null || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) text = value.toExponential(1);
  else if (size >= 1000) text = Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  else text = String(Number(value.toPrecision(3)));
  return text.replaceAll("-", MINUS);
}

function fixed(value, digits = 3, signed = false) {
  if (value == null) return NONE;
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) !== 0 ? MINUS : signed ? "+" : "") + text;
}

function percent(value, signed = false) {
  return value == null ? NONE : `${fixed(100 * value, 1, signed)}%`;
}

function duration(seconds) {
  const total = Math.round(seconds);
  if (total < 60) return `${total < 10 ? Number(seconds.toPrecision(2)) : total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
}

const ACRONYMS = /\b(kl|lr|sft|rl|ppo|gpu|cpu|id)\b/gi;
const words = (name) => name.replace(/[_/.]+/g, " ").replace(ACRONYMS, (word) => word.toUpperCase()).replace(/^./, (letter) => letter.toUpperCase());
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const POLICIES = { base: "Base", sft: "SFT", rl: "RL" };
const SPLITS = { held_in: "held-in", held_out: "held-out" };

/** Format seconds ago. */
const ago = (seconds) => (seconds < 1.5 ? "just now" : `${duration(seconds)} ago`);
/** Colour of a compared run, by index. */
const RUN_TONES = 8;
const runTone = (index) => `run${index % RUN_TONES}`;

/** A bar filled to `share`, from 0 to 1. */
function meter(share, classes = "") {
  const bounded = Math.min(1, Math.max(0, share || 0));
  return svg(`svg.meter${classes}`, { width: "100%", height: 8, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect.track", { width: "100%", height: 8, rx: 2 }),
    svg("rect.filled", { width: `${(100 * bounded).toFixed(2)}%`, height: 8, rx: 2 }));
}

/** A table whose columns are [title, number?]. */
function plainTable(classes, columns, rows) {
  const head = columns.map(([title, number]) => el(number ? "th.number" : "th", { scope: "col" }, title));
  const cells = (row) => row.map((cell, index) => el(columns[index][1] ? "td.number" : "td", { "data-label": columns[index][0] }, cell));
  return el("div.scroll", {}, el(`table${classes}`, {}, el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows.map((row) => el("tr", {}, cells(row))))));
}

/** Selector of the run that a section shows; nothing for a single run. */
function runChoice(runs, chosen, onChange) {
  if (runs.length < 2) return null;
  return segmented("Run", Object.fromEntries(runs.map((run, index) => [String(index), [el(`span.key.${runTone(index)}`), run.name]])), String(chosen),
    (value) => onChange(Number(value)));
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

/** A row of buttons with one active. */
function segmented(label, options, value, onChange) {
  const group = el("div.segmented", { role: "group", "aria-label": label });
  for (const [key, text] of Object.entries(options)) {
    group.append(
      el("button", {
        type: "button",
        "aria-pressed": String(key === value),
        click: (event) => {
          for (const other of group.children) other.setAttribute("aria-pressed", other === event.currentTarget);
          onChange(key);
        },
      }, text),
    );
  }
  return group;
}
