"""What a sandbox costs: executions a minute, and the overhead of each, beside a plain subprocess and `docker run`.

    python tools/bench/bench_executions.py                             20 executions of each way, one at a time
    python tools/bench/bench_executions.py --count=200 --slots=8 --task=digits

Every way runs the starting script of one task, which takes its own time by its own clock, its imports included. The
overhead is the wall time of an execution less that. `cold` starts and closes a sandbox for every execution; `warm` uses
one that is open; `step` is a whole step of the environment in it (restore, parse, run, grade, snapshot), and `cached`
the same step again, where the script's own time is none. A Docker engine is measured where one answers. The subprocess
runs in this program's own Python environment, behind no wall and under no limit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments import tasks
from environments.files.blobs import open_store
from environments.guest.script import environment as script_environment
from environments.protocol import Job
from environments.sandbox import SANDBOXES, Sandbox, SandboxUnavailableError, open_sandbox
from environments.sandbox.rootfs import ensure_rootfs
from environments.step import Environment
from environments.tasks import FolderTask

ENTRY = "bench_entry.py"
ENTRY_TEXT = """\
import time
start = time.perf_counter()
import runpy
runpy.run_path({script!r}, run_name="__main__")
print("\\nown", time.perf_counter() - start)
"""
COLUMNS = ("way", "executions/min", "overhead median ms", "overhead p90 ms", "script median ms")
Way = Callable[[], float]
"""Makes one execution; returns the script's own seconds."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """One task, and where its workspaces are made."""

    task: FolderTask
    root: Path

    @contextlib.contextmanager
    def workspace(self, data: bool = False) -> Iterator[Path]:
        """The starting workspace with an entry that takes the time, and with the public data where asked."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            workspace = Path(folder, "workspace")
            shutil.copytree(self.task.env, workspace)
            (workspace / ENTRY).write_text(ENTRY_TEXT.format(script=self.task.spec.entry))
            if data:
                shutil.copytree(self.task.public, workspace / "data")
            yield workspace

    def warm(self, sandbox: Sandbox) -> float:
        with self.workspace() as workspace:
            run = sandbox.run(workspace, ENTRY, self.task.spec.limits, data=self.task.public)
        return own_seconds(run.stdout, run.stderr)

    def cold(self, name: str) -> float:
        with contextlib.closing(open_sandbox(name)) as sandbox:
            return self.warm(sandbox)

    def step(self, environment: Environment) -> float:
        """A step of the environment, from the initial state."""
        spec = self.task.spec
        action = f"Action: Execute Script\nAction Input: {json.dumps({'script_name': spec.entry})}"
        state = environment.initial_state(self.task.key)
        outcome = environment.take(Job("bench", 0, state, 0, action, limits=spec.limits))
        if "valid" not in outcome.progress:
            raise RuntimeError(f"the step ended as {outcome.kind}: {outcome.observation} {outcome.reason}")
        return 0.0 if outcome.cached else outcome.seconds

    def subprocess(self) -> float:
        with self.workspace(data=True) as workspace:
            variables = {**os.environ, **script_environment(seed=0), "PATH": os.environ["PATH"]}
            return finished([sys.executable, ENTRY], cwd=workspace, env=variables)

    def docker_run(self, image: str) -> float:
        """A container as one starts it by hand, without hardening or limits but the network's absence."""
        with self.workspace(data=True) as workspace:
            settings = [f"--env={name}={value}" for name, value in script_environment(seed=0).items()]
            mounted = ["--network=none", f"--volume={workspace}:/workspace", "--workdir=/workspace"]
            return finished(["docker", "run", "--rm", *mounted, *settings, image, "/usr/local/bin/python3", ENTRY])


def finished(command: list[str], **options: object) -> float:
    """Run a command that prints the script's own seconds last."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return own_seconds(done.stdout, done.stderr)


def own_seconds(stdout: str, stderr: str) -> float:
    """What `ENTRY` printed last."""
    word, _, seconds = (stdout.strip().splitlines() or [""])[-1].partition(" ")
    if word != "own":
        raise RuntimeError(f"the script did not end well: {stderr.strip()[-500:]}")
    return float(seconds)


def measure(way: Way, count: int, slots: int) -> tuple[float, float, float, float]:
    """Executions a minute; median and 90th percentile of the overhead, and median of the script's own time, in ms."""

    def timed(_: int) -> tuple[float, float]:
        start = time.perf_counter()
        own = way()
        return time.perf_counter() - start, own

    way()  # What is made once and kept (files in the page cache, the copy of the data) is made before the clock starts.
    start = time.perf_counter()
    with ThreadPoolExecutor(slots) as pool:
        taken = list(pool.map(timed, range(count)))
    elapsed = time.perf_counter() - start
    overhead = sorted(wall - own for wall, own in taken)
    p90 = overhead[min(len(overhead) - 1, int(0.9 * len(overhead)))]
    own_median = statistics.median(own for _, own in taken)
    return 60 * count / elapsed, 1000 * statistics.median(overhead), 1000 * p90, 1000 * own_median


def ways(bench: Bench, sandboxes: dict[str, Sandbox], store: Path, stack: contextlib.ExitStack) -> dict[str, Way]:
    """What is measured, by name, the reference first."""
    found: dict[str, Way] = {"subprocess": bench.subprocess}
    if "docker" in sandboxes:
        found["docker run"] = functools.partial(bench.docker_run, ensure_rootfs().image)
    for name, sandbox in sandboxes.items():
        found[f"{name}, cold"] = functools.partial(bench.cold, name)
        found[f"{name}, warm"] = functools.partial(bench.warm, sandbox)
        for kind, cache in (("step", False), ("cached", store / f"{name}.sqlite")):
            environment = Environment(bench.task.folder.parent, sandbox, open_store(store), cache=cache)
            stack.callback(environment.close)
            found[f"{name}, {kind}"] = functools.partial(bench.step, environment)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="executions of each way")
    parser.add_argument("--slots", type=int, default=1, help="executions at once")
    parser.add_argument("--task", default="iris", help="whose starting script is run")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.slots < 1:
        parser.error("--count and --slots are at least 1")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-executions-")))
        sandboxes: dict[str, Sandbox] = {}
        for name in SANDBOXES.names():
            try:
                sandboxes[name] = stack.enter_context(contextlib.closing(open_sandbox(name)))
            except SandboxUnavailableError as error:
                print(f"not measured: {name}: {error}", file=sys.stderr)
        if not sandboxes:
            sys.exit("no sandbox runs here")
        task = tasks.prepare(arguments.task, root / "tasks", 0, next(iter(sandboxes.values())))
        print(f"{task.spec.name}, {arguments.count} executions of each way, {arguments.slots} at once")
        print("".join(f"{column:>20}" for column in COLUMNS))
        for name, way in ways(Bench(task, root), sandboxes, root / "store", stack).items():
            figures = measure(way, arguments.count, arguments.slots)
            print(f"{name:>20}" + "".join(f"{figure:>20.1f}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
