// Progress of the runs: stages, the current stage's report, and the time of the last activity.

const SILENT_SECONDS = 120;

/** Return the running stage, or null if all are done or none has started. */
const current = (progress) => (progress.stages || []).find((stage) => !stage.done) || null;

function drawProgress(body, runs, live) {
  body.replaceChildren(...runs.map((run, index) => {
    const { stages, now, age_seconds: age } = run.progress;
    const going = current(run.progress);
    const chips = stages.map((stage) => el(`li.${stage.done ? "done" : stage === going ? "going" : "waiting"}`, {},
      stageName(stage.name), stage.done && stage.seconds != null ? el("span.took", {}, duration(stage.seconds)) : null));
    const title = runs.length > 1 ? el("h3", {}, el(`span.key.${runTone(index)}`), run.name) : null;
    return el("div.progress", {}, title,
      stages.length ? el("ol.chips", { "aria-label": "Stages" }, chips) : el("p.note", {}, "This run has not begun."),
      going ? told(now, age, live) : null);
  }));
}

/** Draw the stage's line and bar, and its age if it is old. */
function told(now, age, live) {
  if (!now) return null;
  const ended = now.state !== "running";
  const values = Object.entries(now.values || {}).map(([name, value]) => `${words(name)} ${compact(value)}`);
  const facts = [
    `${words(now.stage)}: ${now.total == null ? now.done : `${now.done.toLocaleString("en")} of ${now.total.toLocaleString("en")}`} ${now.unit}s`,
    ended ? now.state : now.rate ? (now.rate >= 1 ? `${compact(now.rate)} a second` : `${duration(1 / now.rate)} each`) : null,
    ended || now.eta_seconds == null ? null : `${duration(now.eta_seconds)} left`,
    ...values,
  ].filter(Boolean);
  const silent = !ended && age > SILENT_SECONDS;
  return el("div.told", {},
    now.total ? meter(now.done / now.total) : null,
    el("p.facts", {}, facts.map((fact) => el("span", {}, fact))),
    silent ? el("p.warning", {}, live ? `Nothing was heard of this run for ${duration(age)}: it was stopped, or one step takes that long.`
      : `When this page was written, nothing had been heard of this run for ${duration(age)}.`) : null);
}
