"""The clean-up of a run's store: what a resume, an evaluation or a reader may need stays, the rest goes."""

import dataclasses
import json
import os
import runpy
import time
from pathlib import Path

import numpy as np
import pytest

from environments.files.blobs import open_store
from environments.files.snapshots import Snapshots
from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities
from mlagent_jax.checkpoints.orbax import Checkpointer
from mlagent_jax.runtime.files import sole_writer
from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import Writer

main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "clean_store.py"))["main"]
OLDEST = 4
"""Step of the oldest checkpoint."""


class World:
    """A run with a state in each place that may need one, in a workdir."""

    def __init__(self, folder):
        self.workdir = folder / "run"
        self.store = open_store(self.workdir / "store")
        self.snapshots = Snapshots(self.store)
        self._folder = folder / "workspace"
        self._folder.mkdir(parents=True)
        self.live, self.dead = {}, {}
        self.configure(self.workdir)
        (self.workdir / "run.json").write_text(json.dumps({"name": "run"}))

    def configure(self, workdir, trajectories="", store="", queue=""):
        workdir.mkdir(exist_ok=True)
        config = {"workers": {"store": store, "queue": queue}, "pool": {"trajectories": trajectories}}
        (workdir / "config.json").write_text(json.dumps(config))

    def state(self, name, live=True):
        """A state with a workspace of its own."""
        (self._folder / "train.py").write_text(f"# {name}")
        snapshot = self.snapshots.snapshot(self._folder)
        (self.live if live else self.dead)[name] = snapshot
        return State("task@1", (), snapshot, f"# {name}", 0.5)

    def step(self, name, live=True, **fields):
        """A job and its outcome, each with a workspace; the outcome has a submission too."""
        job = Job("run", 0, self.state(f"{name}, before", live), 0, name, **fields)
        after = self.state(f"{name}, after", live).snapshot
        submission = self.store.put(f"submission of {name}".encode())
        (self.live if live else self.dead)[f"{name}, submission"] = submission
        scale = Scale(0.0, 1.0, True)
        return job, Outcome(OutcomeKind.SCORED, "", after, "", 0.5, 0.6, scale, reward=0.5, submission=submission)

    def record(self, name, live=True, trajectory=0):
        job, outcome = self.step(name, live)
        return Record.of(job, outcome, stage="collect", split="train", trajectory=trajectory, step=0, prompt="")

    def age(self):
        for blob in self.store.blobs():
            os.utime(self.store._path(blob.id), (time.time() - 7200,) * 2)

    def is_there(self, identity):
        return self.store.has(identity) and not self.store.missing(self.snapshots.in_use([identity]))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    with Writer(world.workdir / "trajectories" / "collect") as steps:
        steps.append([world.record("sealed")])
        steps.seal()
        steps.append([world.record("in the open shard", trajectory=1)])
    (world.workdir / "evaluation").mkdir()
    (world.workdir / "evaluation" / "records.jsonl").write_text(json.dumps(world.record("evaluated").to_dict()) + "\n")
    (world.workdir / "trajectories" / "rl.jsonl").write_text(
        json.dumps(world.record("forgotten by rl", live=False).to_dict()) + "\n"
    )
    with Checkpointer(world.workdir / "checkpoints" / "rl") as saved:
        for step in (OLDEST, 6):
            reached = [world.state(f"pool of {step}").to_dict()]
            under_way = [world.state(f"under way at {step}").to_dict()]
            extra = {"pool": {"reached": reached}, "under_way": under_way}
            saved.save(step, {"weights": np.zeros(3)}, extra)
    queue = open_queue(f"sqlite:///{world.workdir}/queue.db", store=world.store)
    for name, used in (("used long ago", OLDEST - 1), ("used since", OLDEST), ("unused", None), ("large", None)):
        job, outcome = world.step(name, live=used is None or used >= OLDEST)
        if name == "large":  # Stored as a blob, with whatever it names in it.
            job = dataclasses.replace(job, action="x" * 10_000)
            outcome = dataclasses.replace(outcome, observation="x" * 10_000)
        queue.enqueue([job])
        assert queue.complete(queue.claim("w", Capabilities()), outcome)
        if used is not None:
            queue.consume("run", used, [job.id])
    leased, queued = (world.step(name)[0] for name in ("leased", "queued"))
    queue.enqueue([leased])
    queue.claim("w", Capabilities())
    queue.enqueue([queued])
    queue.close()
    for name in ("leased", "queued"):  # They have no outcomes yet.
        for part in ("after", "submission"):
            world.dead[f"{name}, {part}"] = world.live.pop(f"{name}, {part}")
    world.age()
    return world


def test_what_a_live_state_needs_stays_and_the_rest_goes(world, capsys):
    before = {blob.id for blob in world.store.blobs()}
    assert main([str(world.workdir)]) == 0
    assert {blob.id for blob in world.store.blobs()} == before, "without --delete nothing changes"
    assert main([str(world.workdir), "--delete"]) == 0
    lost = [name for name, identity in world.live.items() if not world.is_there(identity)]
    assert lost == []
    assert [name for name, identity in world.dead.items() if world.store.has(identity)] == []
    queue = open_queue(f"sqlite:///{world.workdir}/queue.db", store=world.store)
    assert queue.claim("w", Capabilities()).job.action == "queued"
    queue.close()
    again = {blob.id for blob in world.store.blobs()}
    assert main([str(world.workdir), "--delete"]) == 0
    assert {blob.id for blob in world.store.blobs()} == again
    assert "0 deleted" in capsys.readouterr().out


def test_what_was_written_lately_stays(world):
    new = world.state("just taken", live=False).snapshot
    assert main([str(world.workdir), "--delete"]) == 0
    assert world.is_there(new)


def test_steps_of_another_run_that_it_begins_with_stay_too(world, tmp_path):
    second = tmp_path / "second"
    world.configure(second, trajectories=str(world.workdir), store=str(world.workdir / "store"))
    assert main([str(second), "--delete"]) == 0
    assert world.is_there(world.live["sealed, before"])
    assert world.is_there(world.live["unused, after"]), "its queue and its checkpoints are read too"


def test_a_run_that_is_at_work_is_left_alone(world, capsys):
    with sole_writer(world.workdir, "wait"):
        assert main([str(world.workdir), "--delete"]) == 1
    assert "another process" in capsys.readouterr().err


def test_a_store_of_another_run_and_a_folder_without_one_are_refused(world, tmp_path, capsys):
    other = open_store(tmp_path / "other")
    foreign = other.put(b"of another run")
    os.utime(other._path(foreign), (0, 0))
    world.configure(world.workdir, store=str(tmp_path / "other"))
    assert main([str(world.workdir), "--delete"]) == 1
    assert "this is not its store" in capsys.readouterr().err
    assert other.has(foreign)
    assert main([str(tmp_path / "other"), "--delete"]) == 1
    assert "holds no run" in capsys.readouterr().err
