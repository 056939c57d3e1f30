"""`python -m mlagent_jax.report WORKDIR [WORKDIR ...]`: write the reports of runs again, and print their figures.

Works while a run goes on, with what there is so far. Several workdirs (the same configuration with other seeds) are
also pooled into one table. The tables are Markdown.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from absl import app, flags

from mlagent_jax.data.jsonl import RecordError
from mlagent_jax.reporting import table
from mlagent_jax.reporting.html import write_report
from mlagent_jax.reporting.summary import pool_summaries

_JSON = flags.DEFINE_boolean("json", False, "Print the summary (pooled, where there are several runs) as JSON instead.")


def report(workdirs: Sequence[str], as_json: bool = False) -> str:
    """Write the reports of `workdirs`; returns what to print.

    Raises:
      FileNotFoundError, RecordError: as `write_report`.
      ValueError: the same workdir twice.
    """
    several = len(workdirs) > 1
    pooled = pool_summaries(workdirs) if several else None
    singles = [write_report(workdir) for workdir in workdirs]
    if as_json:
        return json.dumps(pooled or singles[0], indent=2)
    sections = []
    for workdir, summary in zip(workdirs, singles, strict=True):
        sections.append(f"## {workdir}\n\n{table.policy_table(summary)}\n\n{workdir}/report/index.html")
    whole = pooled or singles[0]
    if pooled:
        sections.append(f"## {len(workdirs)} runs pooled\n\n{table.policy_table(pooled)}")
    sections.append(f"### Tasks\n\n{table.task_table(whole)}")
    return "\n\n".join(sections)


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise app.UsageError("name the workdir of at least one run")
    try:
        print(report(argv[1:], _JSON.value))
    except (FileNotFoundError, RecordError, ValueError) as error:
        sys.exit(f"report: {error}")


if __name__ == "__main__":
    app.run(main)
