"""A run's workdir in the true formats, made up: reports are tested on it without training anything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from environments.protocol import Outcome, OutcomeKind, Scale
from environments.rewards import compute
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import Writer

TASKS = {
    "held_in": ("moons", "trend", "wine", "reviews"),
    "held_out": ("diabetes", "digits", "words"),
}
SKILL = {"base": 0.05, "sft": 0.5, "rl": 0.8}
SCALE = Scale(m_init=0.71, m_best=0.93, higher_is_better=True)
SCRIPT = """# %% imports
from helper import load, save
from sklearn.linear_model import LogisticRegression
# %% model
model = LogisticRegression(C=0.01)
# %% fit
train, test = load()
model.fit(train.x, train.y)
save(model.predict(test.x))
"""
EDIT = "model = RandomForestClassifier(n_estimators=60, min_samples_leaf=2)"
DIFF = f"""--- train.py
+++ train.py
@@ -1,6 +1,6 @@
 # %% imports
 from helper import load, save
-from sklearn.linear_model import LogisticRegression
+from sklearn.ensemble import RandomForestClassifier
 # %% model
-model = LogisticRegression(C=0.01)
+{EDIT}
 # %% fit
"""
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 5, in <module>
    model = RandomForestClassifer(n_estimators=60)
NameError: name 'RandomForestClassifer' is not defined. Did you mean: 'RandomForestClassifier'?
"""


def make_outcome(kind: OutcomeKind, metric: float = 0.8, before: float = 0.71) -> Outcome:
    """An outcome of `kind` with its real reward."""
    scored = kind is OutcomeKind.SCORED
    observations = {
        OutcomeKind.SCORED: "The script has been executed. Here is the output:\nvalidation accuracy 0.803\n",
        OutcomeKind.SCRIPT_ERROR: TRACEBACK,
        OutcomeKind.INVALID_ACTION: "EnvError: the reply holds no `Action:` line",
        OutcomeKind.NO_EDIT: SCRIPT,
    }
    outcome = Outcome(
        kind=kind,
        observation=observations.get(kind, "CPU time limit of 10 s reached"),
        snapshot="a" * 64,
        script=SCRIPT,
        metric_before=before,
        metric_after=metric if scored else None,
        scale=SCALE,
        action_name=None if kind is OutcomeKind.INVALID_ACTION else "Edit Script (Cell)",
        seconds=0.0 if kind is OutcomeKind.INVALID_ACTION else 0.61,
        cpu_seconds=0.58,
        diff=DIFF if kind in (OutcomeKind.SCORED, OutcomeKind.SCRIPT_ERROR) else "",
        reason="exit status 1" if kind is OutcomeKind.SCRIPT_ERROR else "",
        sandbox="bubblewrap",
    )
    return Outcome.from_dict({**outcome.to_dict(), "reward": compute("improvement", outcome)})


def _draw(rng: np.random.Generator, skill: float, hardness: float) -> Outcome:
    kinds = list(OutcomeKind)
    failing = 1 - skill
    weights = {
        OutcomeKind.INVALID_ACTION: 0.5 * failing,
        OutcomeKind.SCRIPT_ERROR: 0.25 * failing,
        OutcomeKind.NO_EDIT: 0.2 * failing,
        OutcomeKind.TIME_LIMIT: 0.05 * failing,
        OutcomeKind.SCORED: skill,
    }
    kind = kinds[rng.choice(len(kinds), p=[weights.get(kind, 0.0) for kind in kinds])]
    return make_outcome(kind, metric=0.71 + 0.22 * (skill - hardness + 0.4 * rng.standard_normal()))


def _prompt(task: str) -> str:
    return f"Task {task}: tabular classification, 300 rows, 12 columns. accuracy, higher is better.\n\n{SCRIPT}"


def _action(kind: OutcomeKind) -> str:
    if kind is OutcomeKind.INVALID_ACTION:
        return "Thought: the model\nThought: the model\nThought"
    return f"Thought: a linear model is too weak\nAction: Edit Script (Cell)\nCell: model\nCode:\n{EDIT}\n"


def _record(kind: str, task: str, outcome: Outcome, **fields: object) -> dict:
    step = {"prompt": _prompt(task), "action": _action(outcome.kind), "outcome": outcome.to_dict()}
    return {"kind": kind, "task": task, **step, **fields}


def _evaluation(policy: str, rng: np.random.Generator, states: int, samples: int, episodes: int) -> Iterable[dict]:
    for split, tasks in TASKS.items():
        for index, task in enumerate(tasks):
            hardness = 0.1 * index + 0.2 * (split == "held_out")
            for state in range(states):
                luck = 0.2 * rng.standard_normal()
                for sample in range(samples):
                    outcome = _draw(rng, SKILL[policy], hardness - luck)
                    fields = {"policy": policy, "split": split, "state": f"{task}/{state}", "sample": sample}
                    yield _record("step", task, outcome, **fields)
            for trajectory in range(episodes):
                outcomes = [_draw(rng, SKILL[policy], hardness) for _ in range(4)]
                steps = [
                    {"prompt": _prompt(task), "action": _action(outcome.kind), "outcome": outcome.to_dict()}
                    for outcome in outcomes
                ]
                yield {
                    "kind": "episode",
                    "policy": policy,
                    "split": split,
                    "task": task,
                    "trajectory": trajectory,
                    "steps": steps,
                    "report_metric": max(0.7, *(outcome.metric for outcome in outcomes)),
                    "report_init": 0.7,
                    "higher_is_better": True,
                    "best_of": 3,
                }


def _metrics(rng: np.random.Generator) -> Iterable[dict]:
    for step in range(1, 241):
        loss = 2.6 * math.exp(-step / 50) + 0.35 + 0.05 * rng.standard_normal()
        rate = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * step / 240))
        yield {
            "stage": "sft",
            "step": step,
            "seconds": 60 + 1.1 * step,
            "loss": loss,
            "grad_norm": 0.4 + 0.5 * math.exp(-step / 30) * (1 + rng.random()),
            "learning_rate": rate,
            "tokens_per_second": 4500 + 100 * rng.standard_normal(),
        }
    for step in range(1, 17):
        noise = rng.standard_normal(8)
        yield {
            "stage": "rl",
            "step": step,
            "seconds": 400 + 18.0 * step,
            "reward": 0.42 + 0.02 * step + 0.03 * noise[0],
            "valid_action_rate": min(1.0, 0.9 + 0.005 * step + 0.01 * noise[1]),
            "kl": 0.004 * step + 0.003 * abs(noise[2]),
            "entropy": 1.3 - 0.03 * step + 0.03 * noise[3],
            "value_loss": 0.09 * math.exp(-step / 5) + 0.02 + 0.003 * noise[4],
            "policy_loss": -0.01 + 0.004 * noise[5],
            "grad_norm": 0.8 + 0.1 * noise[6],
            "clip_fraction": 0.08 + 0.02 * noise[7],
        }


def write_lines(path: Path, records: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_steps(folder: Path, steps: Iterable[dict]) -> None:
    """Steps of the expert, in a store; where they have no state, one that is too deep for every pool."""
    history = [{"action": "a", "observation": "o"}] * 99
    with Writer(folder) as store:
        for step in steps:
            state = {"task": "any@1", "history": history, "snapshot": "s", "script": "x", "metric": 0.71}
            values = {"state": state, **step}
            store.append([Record.from_dict({name: value for name, value in values.items() if name != "kind"})])


def write_run(
    workdir: Path,
    *,
    seed: int = 0,
    policies: Iterable[str] = ("base", "sft", "rl"),
    states: int = 6,
    samples: int = 2,
    episodes: int = 3,
) -> Path:
    """A finished run in `workdir`, in which RL is better than SFT, and SFT than base."""
    rng = np.random.default_rng(seed)
    write_lines(workdir / "metrics.jsonl", _metrics(rng))
    for policy in policies:
        write_lines(workdir / "evaluation" / f"{policy}.jsonl", _evaluation(policy, rng, states, samples, episodes))
    expert = [
        _record("step", task, _draw(rng, 0.7, 0.0), stage="collect", split="train", trajectory=trajectory, step=step)
        for trajectory in range(3)
        for task in TASKS["held_in"]
        for step in range(4)
    ]
    write_steps(workdir / "trajectories" / "collect", expert)
    sampled = [
        _record("step", task, _draw(rng, 0.7, 0.0), stage="rl", split="train", trajectory=sample, step=step)
        for step in range(1, 17)
        for task in TASKS["held_in"]
        for sample in range(2)
    ]
    write_lines(workdir / "trajectories" / "rl.jsonl", sampled)
    run = {
        "name": f"{workdir.name}-0a1b2c3d",
        "seconds": {"collect": 92.0, "sft": 268.0, "evaluate": 71.5, "rl": 301.2, "export": 3.1, "report": 0.8},
        "executions": 1352,
        "peak_memory_gb": 3.42,
        "seed": seed,
        "sandbox": "bubblewrap",
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6"},
        "config": {"seed": seed, "rl": {"iterations": 16, "clip": 0.2}},
    }
    (workdir / "run.json").write_text(json.dumps(run))
    return workdir


@pytest.fixture
def finished_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a finished run into a fresh folder (see `write_run`)."""
    return lambda name="quickstart", **options: write_run(tmp_path / name, **options)


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    return make_outcome


@pytest.fixture
def live_run(tmp_path: Path) -> Path:
    """A run in the middle of rl, with a queue in which one job waits."""
    from environments.protocol import Job, State
    from environments.queue import open_queue

    from .serving import add_step

    workdir = tmp_path / "live"
    state = {"task": "wine@1", "history": [], "snapshot": "s", "script": "x", "metric": 0.71, "ideas": ["an idea"]}
    record = _record("step", "wine", make_outcome(OutcomeKind.SCORED), stage="collect", split="train", trajectory=0)
    write_steps(workdir / "trajectories" / "collect", [{**record, "step": 0, "state": state}])
    for step in range(1, 4):
        add_step(workdir, step, depth=step // 3)
    config = {"stages": ["collect", "rl"], "pool": {"max_depth": 3}, "workers": {"queue": ""}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "run.json").write_text(json.dumps({"name": "live-1", "done": ["collect"], "seconds": {"collect": 2.0}}))
    told = {"stage": "rl", "state": "running", "done": 3, "total": 8, "unit": "step", "rate": 0.5, "eta_seconds": 10.0}
    (workdir / "progress.json").write_text(json.dumps({**told, "values": {"reward": 0.5}, "written": 1.0}))
    spans = [["sampling", 100.0, 101.5], ["waiting", 101.5, 104.0], ["update", 104.0, 105.0]]
    write_lines(workdir / "timeline.jsonl", [{"stage": "rl", "step": step, "spans": spans} for step in (1, 2)])
    queue = open_queue(f"sqlite:///{workdir / 'queue.db'}")
    queue.enqueue([Job("live-1", 0, State.from_dict({**state, "ideas": []}), 0, "act")])
    queue.close()
    return workdir
