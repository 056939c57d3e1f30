"""`python -m mlagent_jax.report WORKDIR [WORKDIR ...]`: the reports of runs, written again or served while they go on.

Works at any time, with what there is so far. Without `--serve` it writes `report/index.html` and `report/summary.json`
in each workdir and prints tables (Markdown). Several workdirs are also compared, in `--output` (default:
comparison.html beside the first of them), and pooled into one table, which makes sense where they are the same
configuration with other seeds: settings in which they differ are named.

With `--serve` the page is at http://127.0.0.1:PORT/ and keeps itself up to date. It is for this machine alone; from
another: `ssh -L 8100:127.0.0.1:8100 HOST`. Needs the extra `serve`.
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
"""One of them is in every workdir, from a run's first seconds on."""


def report(workdirs: Sequence[str], as_json: bool = False, output: str | None = None) -> str:
    """Write the reports of `workdirs`; returns what to print.

    Args:
      workdirs: Workdirs of runs.
      as_json: Whether the summary is returned as JSON.
      output: File of the comparison of several; None: beside the first of them.

    Raises:
      FileNotFoundError, RecordError: as `write_report`.
      ValueError: the same workdir twice, or one that no run wrote.
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
    """Return a sentence for each run whose settings differ from the first one's in more than the seed."""
    configs = [read_run(workdir).info.get("config") for workdir in workdirs]
    told = []
    for workdir, config in zip(workdirs[1:], configs[1:], strict=True):
        fields = _differences(configs[0] or {}, config or {})
        if fields:
            told.append(f"{workdir} and {workdirs[0]} are of different settings, and their pool is of no run: {fields}")
    return told


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the settings that decide results and differ: `name: one -> other`."""
    flat = [_flat(config) for config in (one, other)]
    names = [
        name
        for name in sorted({*flat[0], *flat[1]})
        if flat[0].get(name) != flat[1].get(name) and not name.startswith(("seed", *MAY_CHANGE))
    ]
    shown = [f"{name} {flat[0].get(name)!r} and {flat[1].get(name)!r}" for name in names[:5]]
    return "; ".join([*shown, *([f"{len(names) - 5} more"] if len(names) > 5 else [])])


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return settings by their full name."""
    found = {}
    for name, value in config.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def serve(workdirs: Sequence[str], port: int, refresh_seconds: float) -> None:
    """Serve the page of `workdirs` to this machine until interrupted.

    Raises:
      FileNotFoundError, RecordError: as `read_run`, for a workdir that cannot be read to begin with.
      ValueError: the same workdir twice.
      OSError: the port is taken.
    """
    import uvicorn

    from mlagent_jax.reporting.server import Report, make_app

    if len(set(workdirs)) < len(workdirs):
        raise ValueError(f"workdirs are {list(workdirs)}: give each once")
    for workdir in workdirs:
        read_run(workdir)
    # Bound before uvicorn starts, so that a port that is taken is our error, and port 0 can be named.
    with socket.create_server(("127.0.0.1", port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
        served = make_app(Report(workdirs, refresh_seconds))
        server = uvicorn.Server(uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=1))
        server.run(sockets=[listening])


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # libraries tell of each file that they open in a bucket
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
