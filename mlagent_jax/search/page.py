"""`page.html`: a self-contained page about a search. It needs no network and never interprets script output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from environments.actions.observation import cut
from mlagent_jax.reporting.html import script_json, source_hash
from mlagent_jax.runtime.files import write_whole
from mlagent_jax.search.tree import Node, Tree, by_operator

_PAGE = Path(__file__).with_name("page")
_TEXT = 6000
"""Maximum characters of an action, a diff or an output; of longer texts, head and tail are shown."""
MAX_NODES = 1000


def page_data(tree: Tree, story: dict[str, Any]) -> dict[str, Any]:
    """Return the page's data: `story` (see `result`), totals, and the first `MAX_NODES` nodes."""
    nodes = list(tree)[:MAX_NODES]
    return {
        **story,
        "higher_is_better": tree.scale.higher_is_better,
        "best": tree.best().number,
        "left_out": len(tree.nodes) - len(nodes),
        "operators": by_operator(tree),
        "nodes": [_node(tree, node) for node in nodes],
    }


def _node(tree: Tree, node: Node) -> dict[str, Any]:
    result, outcome = node.result, node.result and node.result.outcome
    return {
        "number": node.number,
        "operator": node.operator,
        "parents": list(node.plan.parents) if node.plan else [],
        "kind": node.kind,
        "metric": node.metric,
        "gain": tree.gain(node),
        "action": cut(result.action, _TEXT) if result else "",
        "diff": cut(outcome.diff, _TEXT) if outcome else "",
        "output": cut(outcome.observation, _TEXT) if outcome else "",
        "reason": (outcome.reason if outcome else result.reason) if result else "",
        "seconds": outcome.seconds if outcome else 0.0,
        "tokens": result.prompt_tokens + result.completion_tokens if result else 0,
        "value": result.value if result else None,
    }


def write_page(path: epath.PathLike, tree: Tree, story: dict[str, Any]) -> None:
    """Write the page atomically."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script, style = ((_PAGE / name).read_text(encoding="utf-8") for name in ("tree.js", "tree.css"))
    data = page_data(tree, story)
    text = environment.get_template("index.html.j2").render(
        title=data["task"],
        policy=f"default-src 'none'; script-src {source_hash(script)}; style-src {source_hash(style)}",
        style=Markup(style),  # noqa: S704 - our own code, as below
        script=Markup(script),  # noqa: S704
        data=script_json(data),
    )
    write_whole(path, text)
