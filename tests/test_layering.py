"""The order of the rooms of both halves: each imports only rooms above it in its list, so that there is no circle."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ACCELERATOR = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "mlagent_jax"}
LAYERS = {
    "environments": (
        "installed protocol registry cancellation seeds rewards "
        "guest files "  # guest: what runs inside sandboxes, standard library only; it has the one walk over files
        "sandbox.base sandbox.verdict sandbox.probe sandbox.speed sandbox.gpus sandbox.users sandbox.data "
        "sandbox.rootfs sandbox.bubblewrap sandbox.docker sandbox sandbox.self_check "
        "actions queue execution_cache "
        "tasks.grading.metrics tasks.task "  # a task names its metric, which knows the direction
        "tasks.grading tasks.generated tasks.folders tasks.adapters tasks.graders tasks.running tasks.prepared "
        "tasks.check tasks.paper tasks "
        "tasks.check.checker "  # checks any task, so it needs the catalogue, which needs the search for leaks
        "workspaces step episode factory worker . interfaces __main__"
    ),
    "mlagent_jax": (
        ". runtime algorithms optim settings parallelism trajectories models checkpoints sampling agents runs "
        "collection sft rl evaluation reporting search serving studies "
        "sample serve solve pool report train study"
    ),
}
"""Rooms of each half, the lowest first; `.` is the package itself. A deeper name is taken out of the room above it."""
FREE = ("environments.tasks.generated.starter.", "environments.tasks.paper.")
"""Scripts for agents and graders of tasks: they run elsewhere."""


@functools.cache
def imports(path):
    """Modules that a file may import when it runs, with each name of `from module import name` as `module.name`."""
    names, nodes = [], [ast.parse(path.read_text())]
    for node in nodes:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def modules(half):
    """Files of a half by the name of their module."""
    paths = {path: path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / half).rglob("*.py")}
    named = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in paths.items()}
    return {name: path for name, path in named.items() if not name.startswith(FREE)}


def arrows(half):
    """Pairs of modules of a half, of which the first imports the second."""
    known = modules(half)
    for name, path in known.items():
        for imported in imports(path):
            module = imported if imported in known else imported.rpartition(".")[0]
            if module in known and module != name:
                yield name, module


def room(module, rooms):
    """Return the longest room that a module is of."""
    parts = module.split(".")[1:] or ["."]
    found = [name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in rooms]
    assert found, f"{module} is in no room: add it to LAYERS, above what imports it"
    return found[0]


def test_environments_imports_nothing_of_the_accelerator_half():
    for path in (ROOT / "environments").rglob("*.py"):
        wrong = {name.partition(".")[0] for name in imports(path)} & ACCELERATOR
        assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("half", LAYERS)
def test_rooms_import_only_rooms_before_them(half):
    rooms = LAYERS[half].split()
    upward = [
        f"{name} imports {imported}"
        for name, imported in arrows(half)
        if rooms.index(room(name, rooms)) < rooms.index(room(imported, rooms))
    ]
    assert upward == []


@pytest.mark.parametrize("half", LAYERS)
def test_no_module_imports_another_in_a_circle(half):
    graph = {}
    for name, imported in arrows(half):
        graph.setdefault(name, set()).add(imported)
    assert len(graph) > 50
    graphlib.TopologicalSorter(graph).prepare()


def test_no_file_of_ours_has_more_than_400_lines():
    long = {path: len(path.read_text().splitlines()) for half in LAYERS for path in modules(half).values()}
    assert {str(path): lines for path, lines in long.items() if lines > 400} == {}
