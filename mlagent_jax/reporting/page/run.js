// The facts of the runs: time, sandbox, versions, settings, and how the settings of several runs differ.

const runView = { run: 0, config: false };

function drawFacts(node, runs) {
  if (runs.length > 1) return node.replaceChildren(...runs.map((run, index) => el("span", {}, el(`span.key.${runTone(index)}`), run.name)));
  const { run, waited } = runs[0];
  const seconds = Object.values(run.seconds || {}).reduce((sum, value) => sum + value, 0);
  const facts = [
    seconds ? duration(seconds) : null,
    run.executions != null ? `${plural(run.executions, "script")} executed` : null,
    waited != null ? `devices waited for executions ${(100 * waited).toFixed(0)}% of rl` : null,
    run.peak_memory_gb != null ? `${run.peak_memory_gb.toFixed(1)} GB peak` : null,
    run.sandbox ? `sandbox ${run.sandbox}` : null,
    run.ended && run.ended.kind !== "finished" ? `ended: ${run.ended.reason}` : null,
    run.seed != null ? `seed ${run.seed}` : null,
  ].filter(Boolean);
  node.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
}

/** Settings by their full name. */
function settings(config, prefix = "", found = new Map()) {
  for (const [name, value] of Object.entries(config || {})) {
    if (value && typeof value === "object" && !Array.isArray(value)) settings(value, `${prefix}${name}.`, found);
    else found.set(prefix + name, JSON.stringify(value));
  }
  return found;
}

/** A table of the settings in which runs differ. */
function differing(runs) {
  const all = runs.map((run) => settings(run.run.config));
  const names = [...new Set(all.flatMap((each) => [...each.keys()]))].sort().filter((name) => new Set(all.map((each) => each.get(name))).size > 1);
  if (!names.length) return el("p.note", {}, "The settings of these runs are the same.");
  return plainTable(".differing", [["Setting"], ...runs.map((run) => [run.name])],
    names.map((name) => [el("code", {}, name), ...all.map((each) => el("code", {}, each.get(name) || NONE))]));
}

function drawRun(body, runs) {
  const run = runs[Math.min(runView.run, runs.length - 1)].run;
  const choice = runChoice(runs, runView.run, (index) => { runView.run = index; drawRun(body, runs); });
  const seconds = Object.entries(run.seconds || {});
  const longest = Math.max(...seconds.map(([, value]) => value), 1e-9);
  const list = (pairs) => el("dl.facts-list", {}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  const bars = seconds.map(([stage, value]) =>
    el("tr", {}, el("th", { scope: "row" }, stageName(stage)), el("td.bar-cell", {}, meter(value / longest, ".plain")), el("td.number", {}, duration(value))));
  const config = Object.keys(run.config || {}).length
    ? el("details", { open: runView.config, toggle: (event) => { runView.config = event.currentTarget.open; } },
        el("summary", {}, "Configuration"), el("pre.code", {}, JSON.stringify(run.config, null, 2))) : null;
  body.replaceChildren(
    runs.length > 1 ? el("div.block-of", {}, el("h3", {}, "Settings that differ"), differing(runs)) : "",
    choice ? el("div.controls", {}, choice) : "",
    el("div.columns", {},
      bars.length ? el("div", {}, el("h3", {}, "Time by stage"), el("table.stages", {}, el("tbody", {}, bars))) : null,
      run.versions ? el("div", {}, el("h3", {}, "Versions"), list(Object.entries(run.versions))) : null),
    config || "");
}
