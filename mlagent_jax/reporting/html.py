"""`report/index.html`: one file that shows a run, needs no network, and never interprets script output.

Text from policies and scripts is hostile. It enters the page in one place, as JSON in a data block that no character of
it can close, and the page's code inserts it into the document as text nodes only. As a second defence a content
security policy admits only the page's own code and style, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from mlagent_jax.reporting import summary as summaries
from mlagent_jax.reporting.page_data import DEFAULT_LIMITS, Limits, RunReader, page_data
from mlagent_jax.runtime.files import write_whole

_PAGE = Path(__file__).with_name("page")
_SCRIPTS = (
    "dom.js",
    "progress.js",
    "charts.js",
    "results.js",
    "states.js",
    "timeline.js",
    "fleet.js",
    "trajectories.js",
    "run.js",
    "main.js",
)
# Characters that could end a script block or start a comment or entity, and two that old parsers read as line ends.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def script_json(data: Any) -> Markup:
    """Return `data` as JSON that is safe inside `<script type="application/json">`: the same data to a JSON parser,
    without any character that an HTML parser interprets."""
    return Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_ESCAPES))  # noqa: S704


def _own(text: str) -> Markup:
    """Return our own code or style unescaped."""
    return Markup(text)  # noqa: S704


def _source_hash(text: str) -> str:
    """Return an inline block's hash for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(data: Mapping[str, Any]) -> str:
    """Render the page of `data` (see `page_data`). A served page may request updates from its own server, and nothing
    else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    code = "".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; script-src {_source_hash(script)}; style-src {_source_hash(style)}; img-src data:"
    return environment.get_template("index.html.j2").render(
        name=", ".join(run["name"] for run in data["runs"]),
        policy=f"{policy}; connect-src 'self'" if data["live"] else policy,
        style=_own(style),
        script=_own(script),
        data=script_json(data),
    )


def write_page(path: epath.PathLike, data: Mapping[str, Any]) -> epath.Path:
    """Write the page of `data` to `path` atomically; return the path."""
    return write_whole(path, render(data))


def write_report(workdir: epath.PathLike, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Write summary and page of the run in `workdir` to its `report/`; return the summary.

    Raises:
      FileNotFoundError: There is no such folder.
      RecordError: A file in it is broken.
    """
    summary = summaries.write_summary(workdir)
    write_page(epath.Path(workdir) / "report" / "index.html", page_data([RunReader(workdir, limits).read()]))
    return summary


def write_comparison(workdirs: Sequence[epath.PathLike], pooled: Mapping[str, Any]) -> epath.Path:
    """Write one page that compares several runs to the `report/` of the first; return its path.

    Args:
      pooled: `summary.pool_summaries` of the runs.

    Raises:
      FileNotFoundError, RecordError: As `write_report`.
    """
    limits = DEFAULT_LIMITS.shared(len(workdirs))
    runs = [RunReader(workdir, limits).read() for workdir in workdirs]
    return write_page(epath.Path(workdirs[0]) / "report" / "comparison.html", page_data(runs, pooled))
