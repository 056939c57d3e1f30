"""Write docs/config_reference.md from mlagent_jax/settings/.

python tools/config_reference.py            # write it
python tools/config_reference.py --check    # exit status 1 if it is outdated
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import get_type_hints

from mlagent_jax.settings import schema

PAGE = Path(__file__).parents[1] / "docs" / "config_reference.md"
HEAD = """# Config reference

Generated from `mlagent_jax/settings/` by `python tools/config_reference.py`; do not edit. A config file
under `configs/` changes fields, and a flag overrides any field: `--config.rl.value_clip=0.1`. Write several names in
one flag: `--config.tasks.train=a,b`. If another flag is repeated, the last one counts. A workdir is bound to its
settings; a restart may change only
"""


def documentation(cls: type) -> dict[str, str]:
    """Text under each field of a dataclass, by the field's name."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def section(cls: type, path: str) -> str:
    """A table of the fields of one section."""
    types, texts = get_type_hints(cls), documentation(cls)
    rows = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            continue
        kind = types[field.name].__name__ if isinstance(types[field.name], type) else str(types[field.name])
        default = getattr(cls(), field.name)
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        kind = "names" if kind.startswith("tuple") else kind
        text = texts[field.name].replace("|", "\\|")
        rows.append(f"| `{path}{field.name}` | {kind} | {f'`{shown}`' if shown else ''} | {text} |")
    title = f"## {path.removesuffix('.')}\n\n{cls.__doc__}" if path else "## A whole run"
    return f"{title}\n\n| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)


def page() -> str:
    """The whole page."""
    types = get_type_hints(schema.Config)
    sections = [section(schema.Config, "")]
    sections += [section(kind, f"{name}.") for name, kind in types.items() if dataclasses.is_dataclass(kind)]
    may = ", ".join(f"`{name}`" for name in schema.MAY_CHANGE)
    return f"{HEAD.rstrip()} {may}.\n\n" + "\n\n".join(sections) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say whether the page is current")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not current: run python tools/config_reference.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
