"""`report/index.html`: one file that shows a run, opens without a network, and interprets nothing a script printed.

What a policy wrote and a script printed is hostile. It enters the page in one place, as JSON in a data block that no
character of it can close, and the page's code puts it into the document as text nodes only. A content security policy
admits the page's own code and style, by their hashes, and nothing else, should that ever fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from mlagent_jax.reporting import summary as summaries
from mlagent_jax.reporting.page_data import DEFAULT_LIMITS, Limits, page_data

_PAGE = Path(__file__).with_name("page")
_SCRIPTS = ("dom.js", "charts.js", "results.js", "trajectories.js", "main.js")
# What could end a script block or start a comment or an entity in it, and the two that are line ends to old parsers.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def script_json(data: Any) -> Markup:
    """`data` as JSON that is safe inside `<script type="application/json">`: the same data to a JSON parser, but
    without any character that means something to an HTML parser."""
    return Markup(json.dumps(data, allow_nan=False, separators=(",", ":")).translate(_ESCAPES))  # noqa: S704


def _own(text: str) -> Markup:
    """Our own code or style, as it is."""
    return Markup(text)  # noqa: S704


def _source_hash(text: str) -> str:
    """As a content security policy names an inline block."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(data: Mapping[str, Any]) -> str:
    """The page of `data` (see `page_data`)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    code = "".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}}})();\n'
    style = (_PAGE / "page.css").read_text(encoding="utf-8")
    return environment.get_template("index.html.j2").render(
        name=data["name"],
        policy=f"default-src 'none'; script-src {_source_hash(script)}; style-src {_source_hash(style)}; img-src data:",
        style=_own(style),
        script=_own(script),
        data=script_json(data),
    )


def write_page(workdir: epath.PathLike, summary: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> epath.Path:
    """Write the page of the run in `workdir`, whose figures are `summary`; returns its path.

    Raises:
      RecordError: a file of the run is broken.
    """
    path = epath.Path(workdir) / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.partial"
    partial.write_text(render(page_data(workdir, summary, limits)))
    partial.replace(path)
    return path


def write_report(workdir: epath.PathLike) -> dict[str, Any]:
    """Summary and page of the run in `workdir`, into its `report/`; returns the summary.

    Raises:
      FileNotFoundError: there is no such folder.
      RecordError: a file in it is broken.
    """
    summary = summaries.write_summary(workdir)
    write_page(workdir, summary)
    return summary
