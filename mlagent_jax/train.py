"""The entry: run the stages that a config lists.

    python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/quickstart [--config.seed=1 ...]

Stopped in any stage and started again with the same command, it goes on from where it was. Ctrl-C or SIGTERM once saves
and stops (exit status 130 or 75), twice stops at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

from mlagent_jax.runtime.commands import EXPECTED_ERRORS, log, log_plainly
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


def run_stages(config_dict: object, workdir: str, interruption: Interruption, distributed: bool | None = None) -> None:
    """Run all stages of a config in `workdir`, those that are done already left out.

    Args:
      config_dict: the settings.
      workdir: local folder or URL.
      interruption: what signals the process took.
      distributed: whether other processes run with this one; None: where the environment names them.

    Raises:
      Stopped: by a signal that `interruption` took.
    """
    config = freeze(config_dict)
    log.info("stages %s in %s", ", ".join(config.stages), workdir)
    # The accelerator half is imported only when the settings are known to be right: JAX takes seconds.
    from mlagent_jax.reporting.html import write_report
    from mlagent_jax.runs.run import Run
    from mlagent_jax.runtime import processes

    stages = _stages()
    started = time.monotonic()
    processes.join(distributed)
    if processes.count() > 1:
        interruption.defer()
    if not processes.is_first():
        log.setLevel(logging.WARNING)  # the first one speaks for all
    run = Run.open(config, workdir, interruption)

    def end() -> None:
        """Close the run and write its report; in the grace period of SIGTERM only close."""
        run.close()
        if run.is_first and interruption.signum != signal.SIGTERM:
            write_report(workdir)

    try:
        for index, name in enumerate(config.stages):
            run.stop_if_requested()
            with run.stage(name, config.stages[:index].count(name)) as needed:
                # An export that is asked for alone is written anew: it may name another policy by now.
                if needed or config.stages == ("export",):
                    stages[name](run)
    except BaseException:
        try:
            end()
        except Exception as error:  # the one that ended the run says more
            log.warning(
                "the report is missing (%s: %s): write it with `python -m mlagent_jax.report %s`",
                *(type(error).__name__, error, workdir),
            )
        raise
    end()
    log.info(
        "done in %.0f s; the report is %s", time.monotonic() - started, os.path.join(workdir, "report", "index.html")
    )


def _stages() -> dict[str, Callable[[Run], None]]:
    """Return the stages by the name that the config lists them under."""
    from mlagent_jax.collection.stage import collect
    from mlagent_jax.evaluation.stage import evaluate
    from mlagent_jax.reporting.benchmark import write_benchmark
    from mlagent_jax.rl.stage import rl
    from mlagent_jax.runs.export import export
    from mlagent_jax.sft.stage import sft

    def evaluate_and_compare(run: Run) -> None:
        evaluate(run)
        if run.is_first:
            write_benchmark(run.workdir)

    return {"collect": collect, "sft": sft, "evaluate": evaluate_and_compare, "rl": rl, "export": export}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: settings are flags, --config.FIELD=VALUE")
    log_plainly()
    try:
        with Interruption() as interruption:
            run_stages(CONFIG.value, WORKDIR.value, interruption, DISTRIBUTED.value)
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        log.warning("stopped; start again with the same command to go on")
        sys.exit(stopped.status)


def _program() -> None:
    """`main` with its flags, and a quick end."""
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
    flags.mark_flags_as_required(["config", "workdir"])
    _program()
