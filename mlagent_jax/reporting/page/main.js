// The page: reads the data block, draws the sections, stores the colour theme and, if served, polls for updates.

const data = JSON.parse(document.getElementById("data").textContent);
const body = (id) => document.querySelector(`#${id} .body`);

function themed() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  try {
    root.dataset.theme = localStorage.getItem("theme") || "";
  } catch { /* A local file may have no storage: the choice lasts as long as the page. */ }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch { /* As above. */ }
    label();
  });
  system.addEventListener("change", label);
  label();
}

/** Sections with their data; a section with unchanged data is not redrawn. */
const SECTIONS = {
  progress: [() => data.runs.map(({ name, progress }) => [name, progress]), (node) => drawProgress(node, data.runs, data.live)],
  results: [() => [data.pooled, data.runs.map(({ name, summary }) => [name, summary])], (node) => drawResults(node, data, drawFigures)],
  curves: [() => data.runs.map(({ name, curves }) => [name, curves]), (node) => drawCurves(node, data.runs)],
  tasks: [() => [data.pooled, data.runs.map(({ name, summary }) => [name, summary])], (node) => drawTasks(node, data, drawFigures)],
  states: [() => data.runs.map(({ name, states }) => [name, states]), (node) => drawStates(node, data.runs)],
  time: [() => data.runs.map(({ name, timelines }) => [name, timelines]), (node) => drawTimelines(node, data.runs)],
  fleet: [() => data.runs.map(({ name, fleet }) => [name, fleet]), (node) => drawFleet(node, data.runs)],
  run: [() => data.runs.map(({ name, run }) => [name, run]), (node) => drawRun(node, data.runs)],
};
const drawnOf = {};

/** Redraw the sections made from the figures. */
function drawFigures() {
  SECTIONS.results[1](body("results"));
  SECTIONS.tasks[1](body("tasks"));
}

/** Return whether text is selected in a section. */
function isSelected(node) {
  const selection = getSelection();
  return selection && !selection.isCollapsed && node.contains(selection.anchorNode);
}

function draw() {
  drawFacts(document.getElementById("facts"), data.runs);
  for (const [name, [from, to]] of Object.entries(SECTIONS)) {
    const text = JSON.stringify(from());
    if (drawnOf[name] === text || (drawnOf[name] !== undefined && isSelected(body(name)))) continue;
    drawnOf[name] = text;
    to(body(name));
  }
}

// -- updates --

const RETRY_SECONDS = 5;

async function fetched(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 300) || `status ${answer.status}`);
  return answer.json();
}

function liveLoop() {
  const shown = document.getElementById("live");
  let version = "";
  shown.hidden = false;
  const say = (text, ok) => {
    shown.className = ok ? "live" : "live lost";
    shown.textContent = ok ? "Live" : "Not up to date";
    shown.title = text;
  };
  async function look() {
    let wait = data.live;
    if (!document.hidden) {
      try {
        const { trajectories, runs, ...rest } = await fetched("live.json");
        let items = null;
        if (trajectories !== version) {
          items = await fetched("trajectories.json");
          version = trajectories;
        }
        const before = data.runs;
        Object.assign(data, rest);
        data.runs = runs.map((run, index) => ({ ...run, trajectories: items ? items[index] : before[index].trajectories }));
        draw();
        if (items) drawTrajectories(body("trajectories"), data.runs);
        say(`As of ${new Date(data.written * 1000).toLocaleTimeString()}`, true);
      } catch (error) {
        say(`The last look failed (${error.message}); trying again`, false);
        wait = Math.max(wait, RETRY_SECONDS);
      }
    }
    setTimeout(look, 1000 * wait);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) say("Looking", true); });
  say("Looking", true);
  look();
}

themed();
draw();
drawTrajectories(body("trajectories"), data.runs);
if (data.live) liveLoop();
else document.getElementById("written").textContent = `Written ${new Date(data.written * 1000).toLocaleString()}.`;
