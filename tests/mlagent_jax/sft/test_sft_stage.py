"""The stage sft on a handful of recorded steps and a tiny policy: resumed to the last bit, stopped early, refused."""

import contextlib
import dataclasses
import gc
import math
import types

import jax
import needs
import numpy as np
import pytest

from environments import tasks
from environments.protocol import Outcome, OutcomeKind, Scale, State, Step
from environments.tasks.generated.scripts import Script
from mlagent_jax.agents.scripted import cell_edit
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.runs.devices import Devices
from mlagent_jax.runs.export import export
from mlagent_jax.runs.policies import base_policy, checkpointer, renderer, trained_policy
from mlagent_jax.runtime import metrics
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.metrics import MetricsLog
from mlagent_jax.runtime.timeline import Timeline
from mlagent_jax.settings.schema import default_config, freeze
from mlagent_jax.sft.examples import HeldOutSteps, split_trajectories
from mlagent_jax.sft.stage import sft
from mlagent_jax.sft.step import sft_loss
from mlagent_jax.trajectories.record import Record

SPEC = tasks.get("micro-rings-0").spec
SCRIPT = Script("LogisticRegression(C=0.01)").text()
SCALE = Scale(0.5, 0.9, True)
pytestmark = pytest.mark.slow


def record(trajectory, step):
    action = cell_edit("train.py", "model", f"model = SVC(C={trajectory}{step})")
    history = tuple(Step(action, f"validation accuracy 0.{i}") for i in range(step))
    state = State("micro-rings-0@1", history, "snapshot", SCRIPT, 0.5, ideas=("support vectors",))
    outcome = Outcome(OutcomeKind.SCORED, "validation accuracy 0.7", "next", SCRIPT, 0.5, 0.6, SCALE, reward=0.7)
    return Record("collect", "train", "micro-rings-0", trajectory, step, "", state, action, outcome)


RECORDS = [record(trajectory, step) for trajectory in range(6) for step in range(3)]


class Stand:
    """What the stage takes of a run, without sandbox, queue and workers."""

    is_first, specs = True, {"micro-rings-0@1": SPEC}

    def __init__(self, workdir, records=RECORDS, stop_after=None, **settings):
        config = default_config()
        config.policy.update({"hidden_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1})
        config.policy.intermediate_size = 32
        config.tokenizer.vocab_size = 340
        config.prompt.update({"max_prompt_tokens": 280, "max_action_tokens": 60})
        config.sft.update({"epochs": 3, "batch_size": 2, "row_tokens": 360, "learning_rate": 1e-2})
        config.sft.update({"held_out_fraction": 0.34, "evaluate_every": 2, **settings})
        self.config, self.workdir, self._records, self._stop_after = freeze(config), workdir, records, stop_after
        workdir.mkdir(exist_ok=True)
        self.devices = Devices.of(self.config.mesh)
        self.mesh = self.devices.mesh
        self.metrics = MetricsLog(workdir)
        self.timeline = Timeline(None, workdir / "profile", {"sft": self.config.profile.numbers("steps")})
        self.interruption = types.SimpleNamespace(held=contextlib.nullcontext, check=lambda: None)
        self._steps = 0

    def expert_records(self):
        return self._records

    def place(self, batch):
        return batch

    def is_done(self, stage):
        return True

    def is_stopping(self):
        self._steps += 1
        if self._steps == self._stop_after:
            raise KeyboardInterrupt  # the process dies before it can save this step
        return self._stop_after is not None and self._steps == self._stop_after - 1

    @contextlib.contextmanager
    def progress(self, *_, **__):
        yield types.SimpleNamespace(update=lambda *_, **__: None)

    def train(self):
        with jax.set_mesh(self.mesh):
            sft(self)
        self.metrics.close()
        return [row for row in metrics.read(self.workdir) if row["stage"] == "sft"]

    def policy(self):
        with jax.set_mesh(self.mesh):
            return jax.tree.map(np.asarray, trained_policy(self, "sft").params)


MANY = [record(trajectory, step) for trajectory in range(18) for step in range(3)]


@pytest.mark.parametrize(
    "settings", [{"renderings": 3, "batch_size": 1, "records": MANY}, {"packing": False}], ids=["packed", "padded"]
)
def test_a_run_that_died_takes_the_same_steps_to_the_last_bit(tmp_path, settings):
    whole = Stand(tmp_path / "whole", **settings)
    rows = whole.train()
    assert len(rows) >= 9 and sum("held_out_loss" in row for row in rows) == len(rows) // 2 + len(rows) % 2
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    for stop_after in (4, 3):
        with pytest.raises(KeyboardInterrupt):
            Stand(tmp_path / "parts", stop_after=stop_after, **settings).train()
    again = Stand(tmp_path / "parts", **settings)
    parts = again.train()
    timed = {"seconds", "tokens_per_second", "model_tflops"}
    timeless = [[{k: v for k, v in row.items() if k not in timed} for row in side] for side in (parts, rows)]
    assert timeless[0] == timeless[1]
    jax.tree.map(np.testing.assert_array_equal, again.policy(), whole.policy())
    with checkpointer(again, "sft") as saved:
        extra = saved.extra(saved.latest())
    per_epoch = len(rows) // 3
    assert (extra["epoch"], extra["batch"]) == (3, 0) and len(rows) == 3 * per_epoch
    assert extra["evaluations"] == [row["held_out_loss"] for row in rows if "held_out_loss" in row]


def test_a_resumed_run_holds_no_parameters_beside_those_that_it_restores(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        Stand(tmp_path / "run", stop_after=3).train()
    held, restore = [], Checkpointer.restore

    def watched(self, step, wanted):
        gc.collect()
        held.append(sum(array.nbytes for array in jax.live_arrays()) - before)
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(wanted))
        assert held[-1] < size / 20
        return restore(self, step, wanted)

    monkeypatch.setattr(Checkpointer, "restore", watched)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    Stand(tmp_path / "run").train()
    assert held


def test_training_stops_early_and_keeps_the_policy_of_the_lowest_loss(tmp_path):
    # So fast that it soon gets worse.
    run = Stand(tmp_path / "early", learning_rate=0.3, schedule="constant", epochs=40, evaluate_every=1, patience=2)
    rows = run.train()
    losses = [row["held_out_loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(rows) == best + 1 + 2 < 40
    with checkpointer(run, "sft") as saved:
        assert saved.best() == best + 1
    again = Stand(tmp_path / "early", learning_rate=0.3, schedule="constant", epochs=40, evaluate_every=1, patience=2)
    assert len(again.train()) == len(rows)
    evaluated = HeldOutSteps(
        split_trajectories(RECORDS, 0.34, 0)[1], renderer(again, base_policy(again)), run.config.sft
    )
    with jax.set_mesh(run.devices.mesh):
        policy = trained_policy(run, "sft")
        last = trained_policy(run, "sft", len(rows)).params
        with pytest.raises(ConfigError, match="sft@999 was not kept"):
            trained_policy(run, "sft", 999)
        sums = [sft_loss(policy.params, b.arrays(), graph=policy.graph, compute_dtype="float32") for b in evaluated]
    total, count = (float(sum(part)) for part in zip(*sums, strict=True))
    assert total / count == pytest.approx(losses[best], rel=1e-6)
    assert not all(map(np.array_equal, jax.tree.leaves(last), jax.tree.leaves(policy.params)))


def test_other_steps_than_the_checkpoint_was_trained_on_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Stand(tmp_path / "run", packing=False, stop_after=3).train()
    with pytest.raises(ConfigError, match="not those that the checkpoints"):
        Stand(tmp_path / "run", packing=False, records=[*RECORDS[:-1], record(9, 2)]).train()


def configured(stand, **sections):
    """The same run with other settings: a dict of fields for each section named."""
    changed = {name: dataclasses.replace(getattr(stand.config, name), **fields) for name, fields in sections.items()}
    stand.config = dataclasses.replace(stand.config, **changed)
    return stand


def exported(stand, layout):
    """The folder that the stage export writes in this layout."""
    configured(stand, export={"policy": "sft", "layout": layout})
    with jax.set_mesh(stand.mesh):
        export(stand)
    return (stand.workdir / "export").rename(stand.workdir / layout)


def test_the_adapters_alone_are_trained_where_there_are_some_and_exported_in_both_layouts(tmp_path):
    torch, transformers, peft = map(needs.package, ("torch", "transformers", "peft"))
    base = Stand(tmp_path / "base")
    base.train()
    start = exported(base, "merged")
    run = configured(Stand(tmp_path / "run"), policy={"checkpoint": str(start)}, lora={"rank": 2})
    run.train()
    with checkpointer(run, "sft") as saved:
        shapes = saved.shapes(saved.latest())
    assert all("/adapter/" in path for path in shapes if path.startswith("policy/"))

    load = transformers.AutoModelForCausalLM.from_pretrained
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = load(start)(tokens).logits
        merged = load(exported(run, "merged"))(tokens).logits
        beside = peft.PeftModel.from_pretrained(load(start), exported(run, "peft"))(tokens).logits
    assert (merged - plain).abs().max() > 0.01
    torch.testing.assert_close(beside, merged, atol=1e-4, rtol=0)
