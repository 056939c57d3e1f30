"""What a run of several processes refuses, and that batches do not depend on the clock of one of them."""

import dataclasses

import pytest

from mlagent_jax.agent.rollouts import Group, UnderWay
from mlagent_jax.config import CollectConfig, Config, RLConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallelism import processes
from mlagent_jax.run import _check_inputs

IMPATIENT = Config(rl=RLConfig(max_staleness=1, straggler_seconds=5.0))


@dataclasses.dataclass
class FakeJob:
    id: str


@dataclasses.dataclass
class FakeOutcome:
    reward: float


class FakeCollector:
    """Of several processes: `gather` is all there is, for `arrivals` knows of one process alone."""

    def submit(self, jobs):
        pass

    def gather(self, jobs, progress=None):
        return [FakeOutcome(float(job.id)) for job in jobs]


def test_patience_with_stragglers_is_for_one_process(monkeypatch):
    _check_inputs(IMPATIENT)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"config\.rl\.straggler_seconds is 5\.0, and this run has 2 processes"):
        _check_inputs(IMPATIENT)
    _check_inputs(Config())


def test_collecting_with_a_language_model_is_for_one_process(monkeypatch):
    config = Config(stages=("collect",), collect=CollectConfig(expert="endpoint"))
    _check_inputs(config)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ConfigError, match=r"config\.stages has collect.*collect in one process"):
        _check_inputs(config)


def test_several_processes_take_batches_in_the_order_in_which_they_were_handed_out(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    under_way = UnderWay(FakeCollector(), batch=2, max_staleness=1)
    jobs = [(FakeJob(str(2 * i)), FakeJob(str(2 * i + 1))) for i in range(4)]
    under_way.add([Group(i // 2, i, (None, None), jobs[i]) for i in range(4)])
    taken = under_way.take(1)
    assert [(row.group, row.version, row.reward) for row in taken] == [
        (0, 0, 0.0),
        (0, 0, 1.0),
        (1, 0, 2.0),
        (1, 0, 3.0),
    ]
    under_way.trained(taken)
    assert [row.group for row in under_way.take(2)] == [2, 2, 3, 3]
