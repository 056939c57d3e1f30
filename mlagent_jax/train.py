"""Entry point of a run: executes the stages that a config lists.

    python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.seed=1 ...]

A run that was stopped in any stage continues when the same command is started again. The first Ctrl-C or SIGTERM saves
and stops (exit status 130 or 75), the second stops at once. The reason why a run ended is in `run.json` (`ended`), in
`logs/trainer.log` and in the exit status (`runtime.endings.STATUSES`). `--check` checks all settings and inputs without
starting a run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

from mlagent_jax.runtime.commands import log, log_plainly
from mlagent_jax.runtime.endings import FINISHED, ending_of, is_expected
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import Interruption, Stopped, leave
from mlagent_jax.settings.flags import parse_flags
from mlagent_jax.settings.schema import freeze

if TYPE_CHECKING:
    from mlagent_jax.runs.run import Run

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, for example configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or URL of everything that the run writes.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", None, "Whether this is one of several processes; default: where the environment names the others."
)

TOUR = flags.DEFINE_bool("tour", False, "Show at the end what was learned, a trajectory before and after, what to try.")
CHECK = flags.DEFINE_bool("check", False, "Check settings, inputs, tasks, sandbox and queue; take no workdir.")


def run_stages(config_dict: object, workdir: str, interruption: Interruption, distributed: bool | None = None) -> None:
    """Run the stages of a config in `workdir`, except those that are done already.

    Args:
      config_dict: Settings of the run.
      workdir: Local folder or URL.
      interruption: Handler of the signals to the process.
      distributed: Whether this is one of several processes; None: True if the environment names others.

    Raises:
      ConfigError: A setting is invalid.
      Stopped: `interruption` received a signal.
    """
    config = freeze(config_dict)
    log.info("stages %s in %s", ", ".join(config.stages), workdir)
    # Imported after the settings are checked, because JAX takes seconds to import.
    from mlagent_jax.reporting.html import write_report
    from mlagent_jax.runs.run import Run
    from mlagent_jax.runtime import processes

    stages = _stages()
    started = time.monotonic()
    processes.join(distributed)
    if processes.count() > 1:
        interruption.defer()
    if not processes.is_first():
        for handler in log.handlers:  # other processes log only warnings
            handler.setLevel(logging.WARNING)
    run = Run.open(config, workdir, interruption)

    def end() -> None:
        """Close the run and write its report. After SIGTERM only close it, since the grace period is short.

        A report that fails is told and changes no ending: run.json and the exit status must agree.
        """
        run.close()
        if not run.is_first or interruption.signum == signal.SIGTERM:
            return
        try:
            write_report(workdir)
        except Exception as error:
            log.warning(
                "the report is missing (%s: %s): write it with `python -m mlagent_jax.report %s`",
                *(type(error).__name__, error, workdir),
            )
        else:
            log.info("the report is %s", os.path.join(workdir, "report", "index.html"))

    try:
        for index, name in enumerate(config.stages):
            run.stop_if_requested()
            with run.stage(name, config.stages[:index].count(name)) as needed:
                # A config with only an export repeats it: the policy to export may have changed.
                if needed or config.stages == ("export",):
                    stages[name](run)
    except BaseException as error:
        if not is_expected(error):
            log.debug("the run fails", exc_info=True)
        with contextlib.suppress(OSError):  # the disk may be full; `error` matters more
            run.end(ending_of(error))
        try:
            end()
        except Exception as second:  # `error`, which ended the run, matters more
            log.warning("the run is not closed (%s: %s)", type(second).__name__, second)
        raise
    run.end(FINISHED)
    end()
    log.info("done in %.0f s", time.monotonic() - started)


def _stages() -> dict[str, Callable[[Run], None]]:
    """Return the stages by their name in the config."""
    from mlagent_jax.collection.stage import collect
    from mlagent_jax.evaluation.stage import evaluate
    from mlagent_jax.reporting.benchmark import write_benchmark
    from mlagent_jax.reporting.model_card import write_model_card
    from mlagent_jax.rl.stage import rl
    from mlagent_jax.runs.export import export
    from mlagent_jax.sft.stage import sft

    def evaluate_and_compare(run: Run) -> None:
        evaluate(run)
        if run.is_first:
            write_benchmark(run.workdir)

    def export_with_card(run: Run) -> None:
        export(run)
        if run.is_first:
            write_model_card(run.workdir, run.workdir / "export", run.config.export.policy)

    return {"collect": collect, "sft": sft, "evaluate": evaluate_and_compare, "rl": rl, "export": export_with_card}


def main(argv: list[str]) -> None:
    """Run the stages that the flags choose, or check the settings; exit with the status of the ending."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: settings are flags, --config.FIELD=VALUE")
    log_plainly()
    try:
        with Interruption() as interruption:
            if CHECK.value:
                return _check()
            if WORKDIR.value is None:
                raise ConfigError("--workdir is missing: name the folder or URL of everything that the run writes")
            run_stages(CONFIG.value, WORKDIR.value, interruption, DISTRIBUTED.value)
        if TOUR.value:
            _tour()
    except Stopped as stopped:
        log.warning("stopped; start again with the same command to go on")
        sys.exit(stopped.status)
    except Exception as error:
        ending = ending_of(error)
        if not is_expected(error):
            raise
        print(f"error: {ending.reason}", file=sys.stderr)
        sys.exit(ending.status)


def _check() -> None:
    """Print the findings about a run with these settings, without starting it or writing to a workdir."""
    config = freeze(CONFIG.value)
    from mlagent_jax.runs.check import check

    for line in check(config, WORKDIR.value):
        print(line)


def _tour() -> None:
    from rich.console import Console

    from mlagent_jax.reporting import tour

    tour.show(WORKDIR.value, Console())


def _program() -> None:
    """Parse the flags, run `main`, and end the process quickly."""
    try:
        app.run(main, flags_parser=parse_flags)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        if "jax" in sys.modules:
            from mlagent_jax.runtime import processes

            processes.disconnect()
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    _program()
