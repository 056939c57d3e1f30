"""`python -m mlagent_jax.study configs/studies/NAME.py [...] --workdir=runs/studies --seeds=0,1,2`: run studies.

Runs all runs of a study, one after the other, with `mlagent_jax.train` (a study of time alone: with
`mlagent_jax.studies.sleeping`). After every run it writes a table and a figure of the results so far to
WORKDIR/NAME/index.html. Several studies with the same workdir share the SFT policy of a seed and the default arm. The
same command resumes a stopped study. `--config.FIELD=VALUE` changes a field in every run: `--config.rl.iterations=8`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import check_field
from mlagent_jax.studies.plan import PlannedRun, Study, load_study, runs
from mlagent_jax.studies.report import write_study

SETTINGS = "settings.py"
"""File with the base config of all studies in a folder."""


def run_studies(
    paths: Sequence[Path], root: Path, seeds: Sequence[int], common: dict[str, str], only_report: bool = False
) -> int:
    """Run what is not done yet and report after every run; return an exit status.

    Raises:
      ConfigError: a study cannot be read, or does not fit the others.
    """
    studies = [load_study(path) for path in paths]
    if "rl.iterations" in common:
        studies = [study.scaled(int(common["rl.iterations"])) for study in studies]
    config = paths[0].with_name(SETTINGS)
    if not config.is_file():
        raise ConfigError(f"{config} is missing: the config that all runs of the studies beside it begin with")
    planned = list(runs(studies, root, seeds, common))
    if only_report:
        return _report(studies, root, seeds, planned)
    for number, run in enumerate(planned, 1):
        if run.is_done:
            continue
        print(f"[study] run {number} of {len(planned)}: {run.workdir}", flush=True)
        command = [sys.executable, "-m", run.program, f"--config={config}", *run.flags]
        status = execute(command, _environment(root))
        if status:
            again = "; start again with the same command to go on" if status in (75, 130) else ""
            print(f"[study] status {status} of\n  {shlex.join(command)}\n[study] stopped{again}", file=sys.stderr)
            return status
        if run is not planned[-1]:
            _report(studies, root, seeds, planned)
    return _report(studies, root, seeds, planned)


def _environment(root: Path) -> dict[str, str]:
    """Return the environment of the runs. All compile the same programs, so they share a compilation cache. Huge pages
    are as in launch/quickstart.sh. Variables that are set already win."""
    ours = {"JAX_COMPILATION_CACHE_DIR": str(root.absolute() / "xla"), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    return ours | os.environ


def execute(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program to its end and return its exit status. The program handles signals itself: it saves first."""
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - our own program
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # A terminal sends it to the program too.
                continue
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(studies: Sequence[Study], root: Path, seeds: Sequence[int], planned: Sequence[PlannedRun]) -> int:
    for study in studies:
        page = write_study(study, root, seeds)
        print(f"[study] {study.name}: {page}" if page else f"[study] {study.name}: no arm is done yet", flush=True)
    print(f"[study] {sum(run.is_done for run in planned)} of {len(planned)} runs done", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY", help="for example configs/studies/rewards.py")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs and reports")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas (default: 0,1,2)")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    options, rest = parser.parse_known_args(argv)
    try:
        common = {}
        for argument in rest:
            name, equals, value = argument.removeprefix("--config.").partition("=")
            if not argument.startswith("--config.") or not equals:
                raise ConfigError(f"unexpected argument {argument!r}: settings are flags, --config.FIELD=VALUE")
            check_field(name)
            common[name] = value
        seeds = [int(seed) for seed in options.seeds.split(",")]
        return run_studies(options.studies, options.workdir, seeds, common, options.report)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
