"""Many runs of one config, some at once: every combination of values, random draws, or a list from a file.

    python launch/sweep.py --config=configs/rl.py --workdir=runs/clip --sweep rl.value_clip=0.1,0.2 --sweep seed=0,1,2 \
        --at_once=2 --config.rl.iterations=20

    --sweep FIELD=A,B            every combination with those of the other --sweep (a grid)
    --random N                   N draws instead: FIELD=A,B draws one of the values, FIELD=LOW..HIGH a number between
                                 (whole where both are), FIELD=log:LOW..HIGH one whose logarithm is uniform
    --file FILE                  members from a file: JSON, an object of fields and values a line
    --objective NAME             dotted, in report/summary.json; default: the RL policy's step reward on held-out tasks
    --backend local|slurm|gke    processes here; launch/slurm.sh or launch/gke.sh a member, with --launch=--nodes=2 ...
    --retry                      start members that failed before once more
    --dry_run                    print what would be started, start nothing

A member is a run in WORKDIR/NNN. A failed one does not stop the rest, one that was pre-empted is started again, and
after an interruption the same command goes on: what is done is not done again. WORKDIR/sweep.html has a
parallel-coordinates plot and a table; sweep.csv has the table. Needs neither JAX nor an accelerator by itself.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import difflib
import html
import io
import itertools
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import INTERRUPTED, PREEMPTED
from mlagent_jax.settings.flags import read_config
from mlagent_jax.settings.schema import check_field

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVE = "policies.rl.step_reward.held_out.mean"
MEMBERS = "sweep.json"
SUMMARY = Path("report", "summary.json")
"""In a member's workdir."""

Values = dict[str, str]
"""Settings of a member by field, as they are written on a command line."""


# -- members --


def parse_sweeps(texts: Sequence[str]) -> dict[str, str]:
    """`FIELD=VALUES` texts by field.

    Raises:
      ConfigError: a text of another form, an unknown field, or one that comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        field, equals, values = text.partition("=")
        field = field.removeprefix("config.")
        if not equals or not values:
            raise ConfigError(f"--sweep {text!r}: write FIELD=VALUE,VALUE, for example rl.value_clip=0.1,0.2")
        check_field(field)
        if field in found:
            raise ConfigError(f"--sweep names {field!r} twice: give all its values at once")
        found[field] = values
    return found


def grid(sweeps: Mapping[str, str]) -> list[Values]:
    """Every combination.

    Raises:
      ConfigError: a range, which has no list of values.
    """
    for field, values in sweeps.items():
        if ".." in values:
            raise ConfigError(f"--sweep {field}={values}: a range is drawn from, with --random N")
    lists = [values.split(",") for values in sweeps.values()]
    return [dict(zip(sweeps, chosen, strict=True)) for chosen in itertools.product(*lists)]


def draws(sweeps: Mapping[str, str], count: int, seed: int) -> list[Values]:
    """`count` random members; the first n are the same whatever `count` is."""
    rng = random.Random(f"{seed}/sweep")  # noqa: S311 - reproducible, not secret
    return [{field: _draw(rng, field, values) for field, values in sweeps.items()} for _ in range(count)]


def _draw(rng: random.Random, field: str, values: str) -> str:
    if ".." not in values:
        return rng.choice(values.split(","))
    log, bounds = values.startswith("log:"), values.removeprefix("log:")
    low_text, _, high_text = bounds.partition("..")
    try:
        low, high = float(low_text), float(high_text)
        if not low < high or (log and low <= 0):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--sweep {field}={values}: write LOW..HIGH with numbers, the lower one first (above 0 with log:)"
        ) from None
    whole = all(text.lstrip("+-").isdigit() for text in (low_text, high_text))
    if log:
        drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        return str(round(drawn)) if whole else f"{drawn:.6g}"
    return str(rng.randint(int(low), int(high))) if whole else f"{rng.uniform(low, high):.6g}"


def from_file(path: Path) -> list[Values]:
    """Members of a file.

    Raises:
      ConfigError: a line is no object of known fields.
    """
    members = []
    for number, line in enumerate(io.StringIO(path.read_text(encoding="utf-8-sig")), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(data, dict) or not data:
            raise ConfigError(f'{path}:{number} is {data!r}; write an object of fields, for example {{"seed": 1}}')
        for field in data:
            check_field(field)
        members.append({field: value if isinstance(value, str) else json.dumps(value) for field, value in data.items()})
    if not members:
        raise ConfigError(f"{path} has no member")
    return members


def check_members(config: str, arguments: Sequence[str], members: Sequence[Values]) -> None:
    """See that the settings of every member are possible, before anything is written or started.

    Args:
      config: the config file.
      arguments: settings that all share, as on a command line.

    Raises:
      ConfigError: the first member whose settings are not, what is wrong in the words of the trainer, and how many
        others there are.
    """
    # A list of values given twice would be both lists, one after the other.
    shared = {argument.partition("=")[0].removeprefix("--config.") for argument in arguments}
    if both := shared & {field for member in members for field in member}:
        raise ConfigError(f"config.{min(both)} is given for all members and differs between them: leave one out")
    wrong = []
    for index, member in enumerate(members):
        own = [f"--config.{field}={value}" for field, value in member.items()]
        try:
            read_config([f"--config={config}", *arguments, *own])
        except ConfigError as error:
            wrong.append(f"member {index:03d} ({_words(member)}): {error}")
    if wrong:
        others = f"\n{len(wrong) - 1} of the other {len(members) - 1} are impossible too" if len(wrong) > 1 else ""
        raise ConfigError(f"{wrong[0]}{others}")


def _words(member: Values) -> str:
    return " ".join(f"{field}={value}" for field, value in member.items())


# -- running --


class Sweep:
    """The members of a workdir, what became of them, and the processes of those that run."""

    def __init__(self, options: argparse.Namespace, members: Sequence[Values]) -> None:
        self.options, self.members = options, list(members)
        self.folder = Path(options.workdir).absolute()  # Members are started from the checkout.
        self._running: dict[int, subprocess.Popen] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.states: list[str] = self._open()

    def _open(self) -> list[str]:
        """States so far: waiting, done, failed.

        Raises:
          ConfigError: the workdir holds another sweep.
        """
        identity = {"members": self.members, "arguments": self.options.arguments}
        path = self.folder / MEMBERS
        if not path.exists():
            if not self.options.dry_run:
                self.folder.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(identity | {"states": ["waiting"] * len(self.members)}))
            return ["waiting"] * len(self.members)
        stored = json.loads(path.read_text())
        known = len(stored["members"])
        # A longer list goes on with the members there are.
        if stored["members"] != self.members[:known] or stored["arguments"] != self.options.arguments:
            raise ConfigError(
                f"{self.folder} holds a sweep of other members or settings: choose another --workdir, or give the same"
            )
        states = stored["states"] + ["waiting"] * (len(self.members) - known)
        again = ("running", "failed") if self.options.retry else ("running",)
        return ["waiting" if state in again else state for state in states]

    def workdir(self, index: int) -> Path:
        """Of a member."""
        return self.folder / f"{index:03d}"

    def command(self, index: int) -> list[str]:
        """What runs a member to its end; its exit status tells how that was."""
        settings = [f"--config.{field}={value}" for field, value in self.members[index].items()]
        arguments = [f"--config={self.options.config}", *self.options.arguments, *settings]
        if self.options.backend == "local":
            program = [sys.executable, "-m", "mlagent_jax.train"]
            return [*program, *arguments, f"--workdir={self.workdir(index)}"]
        name = f"--name={self.options.name}-{index:03d}"
        # On GKE the workdir is on the cluster's volume: what the table needs of it is fetched.
        summary = self.workdir(index) / SUMMARY
        where = f"--workdir={self.workdir(index)}" if self.options.backend == "slurm" else f"--summary={summary}"
        program = [str(ROOT / "launch" / f"{self.options.backend}.sh"), name, "--wait", where]
        return [*program, *self.options.launch, *arguments]

    def run(self) -> None:
        """All members that wait, `at_once` at a time."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: self.stop())
        waiting = [index for index, state in enumerate(self.states) if state == "waiting"]
        with concurrent.futures.ThreadPoolExecutor(self.options.at_once) as pool:
            list(pool.map(self._run_one, waiting))
        # Also where nothing was left to run: the objective may be another one than before.
        write_results(self.folder, self.members, self.states, self.options.objective)

    def stop(self) -> None:
        """Start nothing more; members here save and stop, jobs elsewhere go on."""
        self._stopping.set()
        print("stopping; start again with the same command to go on", file=sys.stderr, flush=True)
        for process in list(self._running.values()):
            process.terminate()

    def _run_one(self, index: int) -> None:
        while not self._stopping.is_set():
            self._note(index, "running")
            self.workdir(index).mkdir(parents=True, exist_ok=True)
            with open(self.workdir(index) / "sweep.log", "ab") as log:
                # A group of its own: Ctrl-C is told to members once, by us.
                process = subprocess.Popen(  # noqa: S603 - our own programs
                    self.command(index), cwd=ROOT, stdout=log, stderr=log, process_group=0
                )
            self._running[index] = process
            if self._stopping.is_set():
                process.terminate()
            status = process.wait()
            del self._running[index]
            if status in (PREEMPTED, INTERRUPTED, -signal.SIGTERM) and self._stopping.is_set():
                self._note(index, "waiting")
                return
            if status != PREEMPTED:
                self._note(index, "failed" if status else "done", status)
                return

    def _note(self, index: int, state: str, status: int = 0) -> None:
        with self._lock:
            self.states[index] = state
            partial = self.folder / f"{MEMBERS}.partial"
            data = {"members": self.members, "arguments": self.options.arguments, "states": self.states}
            partial.write_text(json.dumps(data))
            partial.replace(self.folder / MEMBERS)
            detail = f" (status {status}: {self.workdir(index) / 'sweep.log'})" if status else ""
            print(f"[{index:03d}] {state}{detail}  {_words(self.members[index])}", flush=True)
            if state != "running":
                write_results(self.folder, self.members, self.states, self.options.objective)


# -- results --


def objective_of(workdir: Path, name: str) -> float | None:
    """A figure of a member's summary; None where it has none so far."""
    try:
        value: Any = json.loads((workdir / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def missing_objective(sweep: Sweep) -> str:
    """What to say where members are done and none has a figure of the objective's name; empty where one has."""
    done = [sweep.workdir(index) for index, state in enumerate(sweep.states) if state == "done"]
    name = sweep.options.objective
    if not done or any(objective_of(workdir, name) is not None for workdir in done):
        return ""
    try:
        names = _figures(json.loads((done[0] / SUMMARY).read_text()))
    except (OSError, ValueError):
        return f"{done[0] / SUMMARY} cannot be read: the table has no figures"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"no member's summary has {name}: the same command with another --objective, such as {' or '.join(near)}"


def _figures(value: Any, name: str = "") -> list[str]:
    """Dotted names of the numbers in a summary."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _figures(inner, f"{name}.{key}" if name else key)]
    return [name] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def write_results(folder: Path, members: Sequence[Values], states: Sequence[str], objective: str) -> None:
    """sweep.csv and sweep.html, best member first."""
    fields = list(dict.fromkeys(field for member in members for field in member))
    figures = [objective_of(folder / f"{index:03d}", objective) for index in range(len(members))]
    order = sorted(range(len(members)), key=lambda i: (figures[i] is None, -(figures[i] or 0.0), i))
    rows = [[f"{i:03d}", states[i], *(members[i].get(field, "") for field in fields), _text(figures[i])] for i in order]
    heads = ["member", "state", *fields, objective]
    table = io.StringIO()
    csv.writer(table).writerows([heads, *rows])
    (folder / "sweep.csv").write_text(table.getvalue())
    points = [([members[i].get(field, "") for field in fields], figures[i]) for i in order if figures[i] is not None]
    (folder / "sweep.html").write_text(_page(folder.name, heads, rows, plot(fields, objective, points)))


def _text(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.6g}"


def plot(fields: Sequence[str], objective: str, points: Sequence[tuple[Sequence[str], float]]) -> str:
    """Parallel coordinates as SVG: an axis a field and one for the objective, a line a member, the best red."""
    if not points:
        return "<p>No member has a result so far.</p>"
    names, width, height, top = [*fields, objective], 180, 320, 40
    columns = [[values[i] for values, _ in points] for i in range(len(fields))]
    scales = [_scale(column) for column in [*columns, [_text(figure) for _, figure in points]]]
    results = [figure for _, figure in points]
    low, spread = min(results), (max(results) - min(results)) or 1.0
    parts, texts = [], []
    for place, (name, (_, ticks)) in enumerate(zip(names, scales, strict=True)):
        x = 80 + place * width
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{top + height}" class="axis"/>')
        texts.append(f'<text x="{x}" y="{top - 18}" text-anchor="middle">{html.escape(name)}</text>')
        for text, share in ticks:
            y = top + height * (1 - share)
            texts.append(f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end" class="tick">{html.escape(text)}</text>')
    for member in reversed(range(len(points))):  # the best last, on top
        line = " ".join(
            f"{80 + place * width},{top + height * (1 - positions[member]):.1f}"
            for place, (positions, _) in enumerate(scales)
        )
        share = (results[member] - low) / spread
        values = ", ".join(f"{field} {value}" for field, value in zip(fields, points[member][0], strict=True))
        title = html.escape(f"{values}: {_text(results[member])}")
        style = f"stroke:hsl({220 - 200 * share:.0f} 75% 50%);opacity:{0.35 + 0.65 * share:.2f}"
        parts.append(f'<polyline points="{line}" style="{style}"><title>{title}</title></polyline>')
    size = f"0 0 {160 + (len(names) - 1) * width} {top + height + 20}"
    inside = "".join([*parts, *texts])  # labels last: above the lines
    return f'<svg viewBox="{size}" role="img" aria-label="Parallel coordinates of the sweep">{inside}</svg>'


def _scale(column: Sequence[str]) -> tuple[list[float], list[tuple[str, float]]]:
    """Each value's place from 0 to 1, and the ticks: by size where all are numbers, else one step a value."""
    try:
        numbers = [float(text) for text in column]
    except ValueError:
        numbers = []
    if numbers and all(map(math.isfinite, numbers)):
        log = min(numbers) > 0 and max(numbers) / min(numbers) > 50
        sizes = [math.log(number) for number in numbers] if log else numbers
        low, spread = min(sizes), max(sizes) - min(sizes)
        places = [(size - low) / spread if spread else 0.5 for size in sizes]
        by_text = dict(sorted(zip(column, places, strict=True), key=lambda pair: pair[1]))
        kept = list(by_text.items())
        return places, kept if len(kept) <= 8 else [kept[0], kept[len(kept) // 2], kept[-1]]
    kinds = sorted(set(column))
    step = {kind: (i / (len(kinds) - 1) if len(kinds) > 1 else 0.5) for i, kind in enumerate(kinds)}
    return [step[text] for text in column], list(step.items())


def _page(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], figure: str) -> str:
    def row(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{html.escape(cell)}</{kind}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep {html.escape(name)}</title>
<meta name="viewport" content="width=device-width"><style>
:root{{color-scheme:light dark}}body{{font:14px system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em}}
svg{{width:100%;height:auto}}polyline{{fill:none;stroke-width:2}}polyline:hover{{stroke-width:5;opacity:1!important}}
.axis{{stroke:currentColor;opacity:.5}}text{{fill:currentColor;font-size:12px;paint-order:stroke;stroke:Canvas;stroke-width:4px}}.tick{{font-size:11px;opacity:.8}}
div{{overflow-x:auto}}td,th{{padding:.25em .8em;text-align:left;border-bottom:1px solid #8884}}</style>
<h1>Sweep {html.escape(name)}</h1>{figure}<div><table>{row(heads, "th")}{body}</table></div></html>
"""


# -- the command --


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options; `arguments` are the settings that all members share."""
    parser = argparse.ArgumentParser(
        prog="python launch/sweep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="a config file")
    add("--workdir", required=True, help="folder of the sweep")
    add("--sweep", action="append", default=[], metavar="FIELD=VALUES")
    add("--random", type=int, default=0, metavar="N")
    add("--seed", type=int, default=0, help="of --random")
    add("--file", type=Path)
    add("--at_once", type=int, default=1, metavar="N", help="members at a time, at most; default: 1")
    add("--objective", default=OBJECTIVE)
    add("--backend", choices=("local", "slurm", "gke"), default="local")
    add("--name", default="sweep", help="of its jobs on Slurm and GKE, which end in the member's number")
    add("--launch", action="append", default=[], metavar="OPTION", help="of launch/slurm.sh or launch/gke.sh")
    add("--retry", action="store_true")
    add("--dry_run", action="store_true")
    options, options.arguments = parser.parse_known_args(argv)
    for argument in options.arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--config.") and equals):
            parser.error(f"unknown argument {argument!r}: settings of all members are written --config.FIELD=VALUE")
        check_field(name.removeprefix("config."))
    if options.at_once < 1:
        parser.error(f"--at_once is {options.at_once}; at least 1")
    if bool(options.sweep) == bool(options.file):
        parser.error("say what differs: --sweep FIELD=VALUES, or --file FILE")
    return options


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 where all members are done, 1 where some failed, 130 where it was stopped."""
    try:
        options = parse(argv)
        sweeps = parse_sweeps(options.sweep)
        if options.file:
            members = from_file(options.file)
        else:
            members = draws(sweeps, options.random, options.seed) if options.random else grid(sweeps)
        check_members(options.config, options.arguments, members)
        sweep = Sweep(options, members)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.dry_run:
        for index, state in enumerate(sweep.states):
            if state == "waiting":
                print(shlex.join(sweep.command(index)))
        return 0
    sweep.run()
    counts = {state: sweep.states.count(state) for state in dict.fromkeys(sweep.states)}
    print(f"{', '.join(f'{count} {state}' for state, count in counts.items())}; {sweep.folder / 'sweep.html'}")
    if missing := missing_objective(sweep):
        print(missing, file=sys.stderr)
    if "waiting" in counts:
        return INTERRUPTED
    return int("failed" in counts)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
