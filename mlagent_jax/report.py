"""`python -m mlagent_jax.report WORKDIR [WORKDIR ...]`: writes the reports of runs, or serves them during the runs.

The command works at any time, with the records that exist so far. Without `--serve` it writes `report/index.html` and
`report/summary.json` in each workdir and prints tables (Markdown). Several workdirs are also compared, in `--output`
(default: comparison.html beside the first of them), and pooled into one table. Pooling makes sense for runs of one
configuration with different seeds, so other settings that differ are named.

With `--serve` the page is at http://127.0.0.1:PORT/ and refreshes itself. Only this machine can reach it; from another
one, use `ssh -L 8100:127.0.0.1:8100 HOST`. Serving needs the extra `serve`.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from etils import epath

from environments.interfaces.terminal import printable
from mlagent_jax.reporting import table
from mlagent_jax.reporting.findings import learned
from mlagent_jax.reporting.html import write_comparison, write_report
from mlagent_jax.reporting.records import read_run
from mlagent_jax.reporting.summary import pool_summaries
from mlagent_jax.runtime.jsonl import RecordError
from mlagent_jax.settings.schema import MAY_CHANGE

_JSON = flags.DEFINE_boolean("json", False, "Print the summary (pooled, where there are several runs) as JSON instead.")
_OUTPUT = flags.DEFINE_string("output", None, "File of the comparison; default: comparison.html beside the first run.")
_SERVE = flags.DEFINE_boolean("serve", False, "Serve a page that refreshes itself, instead of writing one.")
_PORT = flags.DEFINE_integer("port", 8100, "Port to serve at; 0: any that is free.", lower_bound=0, upper_bound=65535)
_REFRESH = flags.DEFINE_float("refresh", 5.0, "Seconds between two looks at the workdirs.", lower_bound=0.2)

_OF_A_RUN = ("run.json", "config.json", "metrics.jsonl", "evaluation")
"""Files and folders of which every workdir has at least one, from the first seconds of a run on."""


def report(workdirs: Sequence[str], as_json: bool = False, output: str | None = None) -> str:
    """Write the reports of `workdirs`, and return the text to print.

    Args:
      workdirs: Workdirs of runs.
      as_json: Whether to return the summary as JSON instead of tables.
      output: File of the comparison of several runs; None: comparison.html beside the first workdir.

    Raises:
      FileNotFoundError, RecordError: As in `write_report`.
      ValueError: A workdir is named twice, or no run wrote it.
    """
    for workdir in map(epath.Path, workdirs):
        if workdir.is_dir() and not any((workdir / name).exists() for name in _OF_A_RUN):
            raise ValueError(f"workdir {str(workdir)!r} holds no run: give the folder that a run wrote")
    several = len(workdirs) > 1
    pooled = pool_summaries(workdirs) if several else None
    singles = [write_report(workdir) for workdir in workdirs]
    comparison = write_comparison(workdirs, pooled, output) if pooled else None
    if as_json:
        return json.dumps(pooled or singles[0], indent=2)
    sections = []
    for workdir, summary in zip(workdirs, singles, strict=True):
        parts = (f"## {workdir}", learned(summary), table.policy_table(summary), f"{workdir}/report/index.html")
        sections.append("\n\n".join(parts))
    whole = pooled or singles[0]
    if pooled:
        warning = "".join(f"WARNING: {line}\n\n" for line in differing(workdirs))
        sections.append(f"## {len(workdirs)} runs pooled\n\n{warning}{table.policy_table(pooled)}\n\n{comparison}")
    sections.append(f"### Tasks\n\n{table.task_table(whole)}")
    return "\n\n".join(sections)


def differing(workdirs: Sequence[str]) -> list[str]:
    """Return a sentence for each run whose settings differ from those of the first run in more than the seed."""
    configs = [read_run(workdir).info.get("config") for workdir in workdirs]
    told = []
    for workdir, config in zip(workdirs[1:], configs[1:], strict=True):
        fields = _differences(configs[0] or {}, config or {})
        if fields:
            told.append(f"{workdir} and {workdirs[0]} are of different settings, and their pool is of no run: {fields}")
    return told


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first five settings that differ and affect results, with both values; the seed does not count."""
    flat = [_flat(config) for config in (one, other)]
    names = [
        name
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name) and not name.startswith(("seed", *MAY_CHANGE))
    ]
    shown = [f"{name} {flat[0].get(name)!r} and {flat[1].get(name)!r}" for name in names[:5]]
    return "; ".join([*shown, *([f"{len(names) - 5} more"] if len(names) > 5 else [])])


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return settings by their full names, such as `rl.epochs`."""
    found = {}
    for name, value in config.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def serve(workdirs: Sequence[str], port: int, refresh_seconds: float) -> None:
    """Serve the page of `workdirs` to this machine until an interrupt.

    Args:
      workdirs: Workdirs of runs.
      port: Port to listen on; 0: a free one.
      refresh_seconds: Minimum seconds between two reads of the workdirs.

    Raises:
      FileNotFoundError, RecordError: As in `read_run`, if a workdir cannot be read at the start.
      ValueError: A workdir is named twice.
      OSError: The port is in use.
    """
    import uvicorn

    from mlagent_jax.reporting.server import Report, make_app

    if len(set(workdirs)) < len(workdirs):
        raise ValueError(f"workdirs are {list(workdirs)}: give each once")
    for workdir in workdirs:
        read_run(workdir)
    # Bound before uvicorn starts, so that a port in use raises here, and the choice for port 0 is known.
    with socket.create_server(("127.0.0.1", port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
        served = make_app(Report(workdirs, refresh_seconds))
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=1))
        server.run(sockets=[listening])


def main(argv: Sequence[str]) -> None:
    """Write or serve the reports of the workdirs in `argv`."""
    logging.set_verbosity(logging.WARNING)  # libraries log each file that they open in a bucket
    if len(argv) < 2:
        raise app.UsageError("name the workdir of at least one run")
    try:
        if _SERVE.value:
            serve(argv[1:], _PORT.value, _REFRESH.value)
        else:
            told = report(argv[1:], _JSON.value, _OUTPUT.value)
            print(told if _JSON.value else printable(told))
    except ModuleNotFoundError as error:
        sys.exit(f"report: {error.name} is not installed: pip install -c constraints.txt -e '.[serve]'")
    except OSError as error:
        taken = f"port {_PORT.value} cannot be listened on ({error.strerror}): choose another with --port"
        sys.exit(f"report: {taken if error.errno in (13, 98) else error}")
    except (RecordError, ValueError) as error:
        sys.exit(printable(f"report: {error}"))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    app.run(main)
