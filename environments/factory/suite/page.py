"""The page of a suite: its tasks with profile, headroom and a picture of the target, to be filtered in the browser.

The page is one HTML file without references to others. Every text from the suite is escaped, and a content security
policy lets no script run but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environments.factory.suite.references import read_suite

_SCRIPT = """
const rows = [...document.querySelectorAll("tbody tr")];
function filter() {
  const words = document.getElementById("words").value.toLowerCase().split(/\\s+/).filter(Boolean);
  const kind = document.getElementById("kind").value, metric = document.getElementById("metric").value;
  let shown = 0;
  for (const row of rows) {
    const fits = (!kind || row.dataset.kind === kind) && (!metric || row.dataset.metric === metric)
      && words.every(word => row.textContent.toLowerCase().includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  document.getElementById("count").textContent = shown;
}
for (const id of ["words", "kind", "metric"]) document.getElementById(id).addEventListener("input", filter);
document.querySelectorAll("th").forEach((head, place) => head.addEventListener("click", () => {
  const key = row => row.children[place].dataset.value || row.children[place].textContent;
  const sign = head.dataset.down = head.dataset.down === "1" ? "" : "1";
  rows.sort((a, b) => (sign ? 1 : -1) * key(a).localeCompare(key(b), undefined, {numeric: true}));
  document.querySelector("tbody").append(...rows);
}));
"""
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; } table { border-collapse: collapse; }
td, th { padding: 3px 8px; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { cursor: pointer; position: sticky; top: 0; background: #fff; } td.n { text-align: right; }
svg { background: #f4f4f4; } rect { fill: #47a; } small { color: #666; }
"""
_HEAD = ("name", "kind", "metric", "rows", "columns", "start", "reference", "headroom", "noise", "target", "traits")


def write_page(out: Path) -> Path:
    """Write report.html into the suite's folder, and return its path.

    Raises:
      TaskError: there is no suite.
    """
    entries = [reference.entry for reference in read_suite(out)]
    path = out / "report.html"
    path.write_text(page(entries), encoding="utf-8")
    return path


def page(entries: Sequence[dict[str, Any]]) -> str:
    """Return the page of a suite's index entries."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    choices = {name: sorted({str(entry[name]) for entry in entries}) for name in ("kind", "metric")}
    selects = "".join(
        f'<select id="{name}"><option value="">any {name}</option>'
        + "".join(f"<option>{_safe(value)}</option>" for value in values)
        + "</select> "
        for name, values in choices.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>Suite</title>'
        f"<style>{_STYLE}</style></head><body><h1>Suite of {len(entries)} tasks</h1>"
        f'<p><input id="words" placeholder="words" autofocus> {selects}<span id="count">{len(entries)}</span> tasks</p>'
        f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in _HEAD)}</tr></thead>"
        f"<tbody>{''.join(map(_row, entries))}</tbody></table><script>{_SCRIPT}</script></body></html>\n"
    )


def _row(entry: dict[str, Any]) -> str:
    numbers = (entry["rows"], entry["columns"], entry["m_init"], entry["m_best"], entry["headroom"], entry["noise"])
    cells = "".join(f'<td class="n" data-value="{float(value):.10f}">{float(value):.4g}</td>' for value in numbers)
    origin = f"{entry.get('table', '')}, {entry.get('license', '')}"
    return (
        f'<tr data-kind="{_safe(entry["kind"])}" data-metric="{_safe(entry["metric"])}">'
        f"<td>{_safe(entry['name'])}<br><small>{_safe(origin)}</small></td><td>{_safe(entry['kind'])}</td>"
        f"<td>{_safe(entry['metric'])}</td>{cells}"
        f"<td>{_safe(entry.get('target', ''))}<br>{_picture(entry.get('picture', ()))}</td>"
        f"<td>{_safe(entry.get('traits', ''))}</td></tr>"
    )


def _picture(counts: Sequence[int]) -> str:
    """Return a histogram of the target."""
    most, width = max([*counts, 1]), 5
    bars = "".join(
        f'<rect x="{place * width}" y="{24 - 24 * int(count) / most:.1f}" width="{width - 1}" '
        f'height="{24 * int(count) / most:.1f}"/>'
        for place, count in enumerate(counts)
    )
    return (
        f'<svg width="{len(counts) * width}" height="24" role="img" aria-label="histogram of the target">{bars}</svg>'
    )


def _safe(text: Any) -> str:
    return html.escape(str(text)[:300])
