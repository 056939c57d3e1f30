"""What a run left tells what its pool holds: whose states, when they entered, what came of acting in them."""

import dataclasses
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from environments.protocol import Outcome, OutcomeKind, Scale, State
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.reporting.pool import pool_text, read_pool, state_text
from mlagent_jax.rl.state_pool import StatePool
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config
from mlagent_jax.settings.stages import PoolConfig
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import Writer


def start(name):
    return State(f"{name}@1", (), f"{name} start", f"# {name}\n", 0.5, ("an idea",))


def record(state, action, reward, step, stage="rl"):
    outcome = Outcome(
        OutcomeKind.SCORED,
        f"saw {action}",
        snapshot=f"{state.snapshot}, {action}",
        script=f"{state.script}{action}\n",
        metric_before=state.metric,
        metric_after=0.6,
        scale=Scale(0.5, 1.0, True),
        reward=reward,
    )
    return Record(stage, "train", state.task_name, 0, step, "prompt", state, action, outcome)


EXPERTS = [record(start("iris"), "e1", 0.5, 0, "collect"), record(start("wine"), "e2", 0.5, 0, "collect")]
DEEP = record(EXPERTS[0].next_state, "e3", 0.5, 1, "collect")
TOO_LONG = record(start("digits"), "e4", 0.5, 0, "collect")


@pytest.fixture
def workdir(tmp_path):
    """Stopped after three iterations; the newest checkpoint is of the second."""
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(Config(pool=PoolConfig(max_depth=1)))))
    with Writer(tmp_path / "trajectories" / "collect") as writer:
        writer.append([*EXPERTS, DEEP, TOO_LONG])
    wine, iris = (dataclasses.replace(start(name), ideas=()) for name in ("wine", "iris"))
    steps = [record(wine, action, reward, 1) for action, reward in (("a", 0.2), ("b\x1b[2J", 0.6))]
    steps += [record(wine, "a", None, 2), record(iris, "c", 0.9, 2), record(iris, "d", 1.0, 3)]
    (tmp_path / "trajectories" / "rl.jsonl").write_bytes(b"".join(jsonl.encode(step.to_dict()) for step in steps))
    deep = dataclasses.replace(DEEP.state, ideas=())
    pool = StatePool([wine, iris, deep], PoolConfig(max_depth=1))
    pool.reach([steps[0].next_state, steps[1].next_state])
    with Checkpointer(tmp_path / "checkpoints" / "rl") as saved:
        saved.save(1, {"x": jnp.zeros(2)}, {"pool": pool.to_dict()})
        pool.reach([steps[2].next_state])
        saved.save(2, {"x": jnp.zeros(2)}, {"pool": pool.to_dict()})
    return tmp_path


def test_the_pool_is_that_of_the_newest_checkpoint(workdir):
    pool = read_pool(workdir)
    rows = [held.to_dict() for held in pool.states]
    assert pool.iteration == 2
    found = [tuple(row[name] for name in ("task", "depth", "from", "entered", "actions", "last")) for row in rows]
    assert sorted(found, key=str) == [
        ("iris", 0, "expert", 0, 1, 2),
        ("iris", 1, "expert", 0, 0, None),
        ("wine", 0, "expert", 0, 3, 2),
        ("wine", 1, "policy", 1, 0, None),
        ("wine", 1, "policy", 2, 0, None),
    ], "none too long or too deep, and a state that was reached again has entered again"
    drawn = {row["task"]: row for row in rows if row["actions"]}
    assert drawn["wine"]["reward"] == pytest.approx(0.4) and drawn["wine"]["spread"] == pytest.approx(0.2)
    assert drawn["iris"]["reward"] == pytest.approx(0.9) and drawn["iris"]["spread"] is None
    cells = {(cell["task"], cell["depth"]): cell for cell in pool.cells()}
    assert {place: (cell["expert"], cell["own"], cell["drawn"], cell["age"]) for place, cell in cells.items()} == {
        ("iris", 0): (1, 0, 1, None),
        ("iris", 1): (1, 0, 0, None),
        ("wine", 0): (1, 0, 1, None),
        ("wine", 1): (0, 2, 0, 0.5),
    }
    text = pool_text(pool, 2)
    assert "5 states after iteration 2: 3 of the expert, 2 of the policy's own" in text
    assert "2 of them" in text and rows[0]["id"][:10] in text and rows[4]["id"][:10] not in text


def test_a_state_is_shown_whole_and_its_text_does_nothing_to_a_terminal(workdir):
    pool = read_pool(workdir)
    (held,) = (each for each in pool.states if each.own and each.entered == 1)
    assert pool.find(held.state.id[:10]) is held
    text = state_text(held)
    assert "b\N{REPLACEMENT CHARACTER}[2J" in text and "saw b" in text and "\x1b" not in text
    assert text.endswith("--- code\n# wine\nb\N{REPLACEMENT CHARACTER}[2J")
    with pytest.raises(ValueError, match="no state of the pool begins with 'xyz'"):
        pool.find("xyz")
    with pytest.raises(ValueError, match="5 states of the pool begin with ''"):
        pool.find("")


def test_before_the_first_checkpoint_the_pool_is_the_expert_s(workdir):
    before = workdir / "before"
    (workdir / "trajectories" / "rl.jsonl").rename(workdir / "rl.jsonl")
    (workdir / "checkpoints").rename(before)
    pool = read_pool(workdir)
    assert pool.iteration is None
    assert [(held.own, held.drawn) for held in pool.states] == [(False, None)] * 4
    assert "4 states before rl" in pool_text(pool, 0)


def test_what_is_missing_is_named(workdir):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        read_pool(workdir / "trajectories")
    (workdir / "trajectories" / "collect").rename(workdir / "away")
    with pytest.raises(ConfigError, match="holds no recorded steps"):
        read_pool(workdir)


def test_the_command_prints_a_state_as_json_and_refuses_an_unknown_one(workdir):
    def run(*words):
        command = [sys.executable, "-m", "mlagent_jax.pool", str(workdir), *words]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    held = next(each for each in read_pool(workdir).states if each.own)
    told = json.loads(run("--json", f"--state={held.state.id[:12]}").stdout)
    assert told | held.to_dict() == told
    assert told["history"][0]["observation"].startswith("saw ") and told["script"].startswith("# wine")
    refused = run("--state=xyz")
    assert refused.returncode == 1 and refused.stderr.strip().startswith("pool: no state of the pool begins with 'xyz'")
