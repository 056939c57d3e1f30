"use strict";
(() => {
  // Texts of policies and scripts become text nodes only.
  const data = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, text = "", name = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  const number = (value) => (value === null ? "" : Number(value.toPrecision(5)).toString());
  document.querySelector("h1").textContent = `Search: ${data.task}`;
  document.getElementById("story").textContent = data.lines.join(" ");
  document.getElementById("warning").textContent = data.warning;

  const table = document.getElementById("operators");
  const head = make("tr");
  for (const name of ["kind", "steps", "valid", "scored", "better", "mean reward"]) head.append(make("th", name));
  table.append(head);
  for (const [name, row] of Object.entries(data.operators)) {
    const line = make("tr");
    const share = (value) => `${Math.round(100 * value)}%`;
    for (const text of [name, row.steps, share(row.valid), share(row.scored), share(row.better), number(row.reward)])
      line.append(make("td", String(text)));
    table.append(line);
  }

  const curve = document.getElementById("curve");
  const draw = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    curve.append(element);
  };
  const better = (a, b) => (data.higher_is_better ? a > b : a < b);
  let best = data.nodes[0].metric;
  const reached = data.nodes.map((node) => {
    if (node.metric !== null && better(node.metric, best)) best = node.metric;
    return best;
  });
  const low = Math.min(...reached), high = Math.max(...reached), last = Math.max(1, reached.length - 1);
  const place = (value, index) => [30 + (560 * index) / last, 140 - (120 * (value - low)) / (high - low || 1)];
  draw("polyline", { points: reached.map((value, index) => place(value, index).join(",")).join(" ") });
  draw("text", { x: 30, y: 156 }, `start ${number(reached[0])}`);
  draw("text", { x: 590, y: 12, "text-anchor": "end" }, `${data.metric}: best ${number(best)} after ${last} steps`);

  const show = (node, button) => {
    for (const other of document.querySelectorAll("button[aria-current]")) other.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    const panel = document.getElementById("node");
    const from = node.parents.length ? ` of ${node.parents.join(" and ")}` : "";
    panel.replaceChildren(make("h2", `Node ${node.number}: ${node.operator}${from}`));
    const facts = [node.kind.replaceAll("_", " ")];
    if (node.metric !== null) facts.push(`${data.metric} ${number(node.metric)}`, `${number(node.gain)} gaps better than the start`);
    if (node.seconds) facts.push(`${node.seconds.toFixed(1)} s`);
    if (node.tokens) facts.push(`${node.tokens} tokens`);
    if (node.value !== null) facts.push(`critic ${number(node.value)}`);
    panel.append(make("p", facts.join(", ")));
    if (node.reason) panel.append(make("p", node.reason));
    for (const [title, text] of [["Diff", node.diff], ["Output", node.output], ["Action", node.action]]) {
      if (!text) continue;
      panel.append(make("h2", title));
      const block = make("pre");
      for (const line of text.split("\n")) {
        const kind = title !== "Diff" ? "" : line.startsWith("+") ? "added" : line.startsWith("-") ? "removed" : "";
        block.append(make("span", `${line}\n`, kind));
      }
      panel.append(block);
    }
  };

  const lists = new Map();
  const top = document.querySelector("#tree > ul");
  for (const node of data.nodes) {
    const item = make("li");
    const said = node.metric === null ? node.kind.replaceAll("_", " ") : number(node.metric);
    const button = make("button", `${node.number} ${node.operator}: ${said}`, node.kind);
    if (node.number === data.best) button.classList.add("best");
    button.addEventListener("click", () => show(node, button));
    const below = make("ul");
    item.append(button, below);
    lists.set(node.number, below);
    (node.parents.length ? lists.get(node.parents[0]) : top).append(item);
    if (node.number === data.best) show(node, button);
  }
  if (data.left_out) top.append(make("li", `${data.left_out} more nodes are not shown`));
})();
