// Workers and the queue: waiting jobs, active workers, results, and problems that need a person.

const fleetView = { run: 0, open: {} };

function folded(name, title, content) {
  return el("details.more", { open: Boolean(fleetView.open[name]), toggle: (event) => { fleetView.open[name] = event.currentTarget.open; } },
    el("summary", {}, title), content);
}

function drawFleet(body, runs) {
  const fleet = runs[Math.min(fleetView.run, runs.length - 1)].fleet;
  const redraw = () => drawFleet(body, runs);
  const choice = runChoice(runs, fleetView.run, (index) => { fleetView.run = index; redraw(); });
  const controls = choice ? el("div.controls", {}, choice) : "";
  if (!fleet) return body.replaceChildren(controls, el("p.note", {}, "This run has no queue yet."));
  if (fleet.error) return body.replaceChildren(controls, el("p.warning", {}, fleet.error));
  const own = fleet.runs[fleet.run] || { queued: 0, leased: 0, done: 0, dead: 0, cancelled: 0, consumed: 0 };
  const rates = fleet.executions_per_minute;
  const alive = fleet.workers.filter((worker) => worker.last_seen_seconds < SILENT_SECONDS && !worker.health.startsWith("stopped"));
  const tile = (name, value, note, tone = "") => el(`div.tile${tone}`, {}, el("span.tile-name", {}, name), el("span.tile-value", {}, value), note ? el("span.tile-note", {}, note) : null);
  const versions = Object.entries(own.outstanding_by_version || {});
  const outcomes = Object.entries(fleet.outcomes);
  const all = outcomes.reduce((sum, [, outcome]) => sum + outcome.count, 0) || 1;
  const others = Object.entries(fleet.runs).filter(([name]) => name !== fleet.run);
  body.replaceChildren(
    controls,
    el("div.tiles", {},
      tile("Waiting", own.queued.toLocaleString("en"), own.queued && own.oldest_queued_seconds != null ? `the oldest for ${duration(own.oldest_queued_seconds)}` : null),
      tile("Under way", own.leased.toLocaleString("en"), versions.length ? `of policy version ${versions.map(([version]) => version).join(", ")}` : null),
      tile("Done", own.done.toLocaleString("en"), `${own.consumed.toLocaleString("en")} trained on`),
      tile("Given up", own.dead.toLocaleString("en"), own.cancelled ? `${own.cancelled.toLocaleString("en")} cancelled` : null, own.dead ? ".alarm" : ""),
      tile("Executions a minute", rates.last_minute.toLocaleString("en"), `${compact(rates.last_10_minutes)} over ten minutes`),
      tile("Workers", String(alive.length), plural(alive.reduce((sum, worker) => sum + worker.slots, 0), "slot"))),
    fleet.workers.length ? plainTable(".workers", [["Worker"], ["State"], ["Seen", true], ["Slots", true], ["Completed", true], ["Failed", true]],
      fleet.workers.map((worker) => [
        [worker.name, el("span.sub", {}, `${worker.host}, version ${worker.version}`)],
        el(`span.health.${alive.includes(worker) ? (worker.health === "ok" ? "well" : "ill") : "gone"}`, {}, alive.includes(worker) ? worker.health : worker.health.startsWith("stopped") ? worker.health : "silent"),
        ago(worker.last_seen_seconds), worker.slots, worker.completed.toLocaleString("en"), worker.failed.toLocaleString("en")]))
      : el("p.note", {}, "No worker has asked for work yet."),
    ...(outcomes.length ? [el("h3.space", {}, "Outcomes of all jobs, those that ran no script or were answered from a cache included"), plainTable(".outcomes", [["Outcome"], [""], ["Count", true], ["Seconds each", true]],
      outcomes.sort(([, a], [, b]) => b.count - a.count).map(([kind, outcome]) => [badge(kind), meter(outcome.count / all, `.${OUTCOMES[kind] ? kind : "other"}`), outcome.count.toLocaleString("en"), compact(outcome.mean_seconds)]))] : []),
    fleet.dead_letters.length ? folded("dead", plural(fleet.dead_letters.length, "job") + " given up, newest first",
      plainTable(".letters", [["Job"], ["Attempts", true], ["When", true], ["Reason"]], fleet.dead_letters.map((letter) => [el("code", {}, letter.job.slice(0, 12)), letter.attempts, ago(letter.age_seconds), letter.reason]))) : "",
    fleet.leases.length ? folded("leases", `${plural(fleet.leases.length, "execution")} under way, oldest first`,
      plainTable(".leases", [["Job"], ["Worker"], ["Attempt", true], ["For", true], ["Lease", true]], fleet.leases.map((lease) => [el("code", {}, lease.job.slice(0, 12)), lease.worker, lease.attempt, duration(lease.age_seconds), lease.remaining_seconds >= 0 ? `${duration(lease.remaining_seconds)} left` : `over for ${duration(-lease.remaining_seconds)}`]))) : "",
    others.length ? folded("others", `${plural(others.length, "other run")} in this queue`,
      plainTable(".others", [["Run"], ["Waiting", true], ["Under way", true], ["Done", true], ["Given up", true]], others.map(([name, run]) => [name, run.queued, run.leased, run.done, run.dead]))) : "",
    el("p.note", {}, `${fleet.queue}`, fleet.late_results ? `; ${plural(fleet.late_results, "late result")} discarded` : ""));
}
