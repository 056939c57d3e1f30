// The page: reads the data block, draws the sections, and remembers light or dark.

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
  } catch { /* A file may have no storage: the choice then lasts as long as the page. */ }
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

themed();
drawFacts(document.getElementById("facts"), data.run);
drawResults(body("results"), data.summary);
drawCurves(body("curves"), data.curves);
drawTasks(body("tasks"), data.summary);
drawTrajectories(body("trajectories"), data.trajectories, data.totals);
drawRun(body("run"), data.run);
