"""Drawing states: balanced over tasks, reproducible, and persistent."""

import collections
import dataclasses

import numpy as np
import pytest

from environments.protocol import State, Step
from mlagent_jax.rl.state_pool import StatePool
from mlagent_jax.settings.stages import PoolConfig


def state(task, number, depth=0):
    return State(f"{task}@1", (Step("a", "o"),) * depth, f"{task}{number}", "x = 1", 0.5)


EXPERT = [state("rare", 0)] + [state("common", i) for i in range(30)] + [state("other", i) for i in range(3)]


def test_tasks_are_drawn_equally_however_many_states_they_have():
    drawn = StatePool(EXPERT, PoolConfig()).sample(np.random.default_rng(0), 30)
    assert set(collections.Counter(s.task_name for s in drawn).values()) == {10}


def test_depths_are_drawn_equally_however_many_states_they_have():
    states = [state("t", i, depth=min(i, 3)) for i in range(40)]
    pool = StatePool(states, PoolConfig())
    firsts = [pool.sample(np.random.default_rng(seed), 1)[0] for seed in range(200)]
    counts = collections.Counter(len(s.history) for s in firsts)
    assert all(30 <= counts[depth] <= 70 for depth in range(4))


def test_kinds_of_steps_are_drawn_equally_however_many_states_they_have():
    kinds = ["improve"] * 60 + ["debug"] * 3 + ["combine"]
    states = [dataclasses.replace(state("t", i, 1), operator=kind) for i, kind in enumerate(kinds)]
    firsts = [StatePool(states, PoolConfig()).sample(np.random.default_rng(seed), 1)[0] for seed in range(150)]
    counts = collections.Counter(s.operator for s in firsts)
    assert all(30 <= counts[kind] <= 70 for kind in ("improve", "debug", "combine"))


def test_a_tasks_states_are_not_repeated_while_there_are_others():
    drawn = StatePool(EXPERT, PoolConfig()).sample(np.random.default_rng(0), 30)
    common = [s.id for s in drawn if s.task_name == "common"]
    assert len(set(common)) == len(common)


def test_the_same_seed_draws_the_same_states():
    draws = [[s.id for s in StatePool(EXPERT, PoolConfig()).sample(np.random.default_rng(3), 8)] for _ in range(2)]
    assert draws[0] == draws[1]


def test_reached_states_enter_at_the_set_share_and_the_oldest_leave():
    pool = StatePool(EXPERT, PoolConfig(refresh_fraction=0.5, refresh_size=4))
    pool.reach(state("new", i) for i in range(6))
    drawn = pool.sample(np.random.default_rng(0), 8)
    new = [s.snapshot for s in drawn if s.task_name == "new"]
    assert len(new) == 4
    assert set(new) == {"new2", "new3", "new4", "new5"}


def test_a_state_reached_again_is_kept_once_as_the_newest():
    pool = StatePool(EXPERT, PoolConfig(refresh_fraction=1.0, refresh_size=2))
    pool.reach(state("new", i) for i in (0, 1, 0, 2))
    drawn = pool.sample(np.random.default_rng(0), 2)
    assert {s.snapshot for s in drawn} == {"new0", "new2"}


def test_learnability_still_decides_once_all_states_were_drawn():
    states = [state("t", i) for i in range(10)]
    pool = StatePool(states, PoolConfig(sampling="learnability"))
    pool.learn({s.id: [0.0, 1.0] if s.snapshot == "t7" else [0.5, 0.5] for s in states})
    second_rounds = [pool.sample(np.random.default_rng(seed), 11)[10].snapshot for seed in range(50)]
    assert second_rounds.count("t7") > 25


def test_states_deeper_than_the_limit_do_not_enter():
    pool = StatePool(EXPERT, PoolConfig(refresh_fraction=1.0, max_depth=2))
    pool.reach([state("deep", 0, depth=3)])
    assert len(pool) == len(EXPERT)


def test_learnability_prefers_states_whose_rewards_vary():
    pool = StatePool([state("t", i) for i in range(10)], PoolConfig(sampling="learnability"))
    pool.learn({s.id: [0.0, 1.0] if s.snapshot == "t7" else [0.5, 0.5] for s in [state("t", i) for i in range(10)]})
    firsts = [pool.sample(np.random.default_rng(seed), 1)[0].snapshot for seed in range(50)]
    assert firsts.count("t7") > 25


def test_learnability_chooses_among_many_tasks_and_a_new_task_counts_as_its_kind():
    states = [state(f"task{place}", place) for place in range(500)]
    kinds = {one.task: "text" if place % 2 else "tabular" for place, one in enumerate(states)}
    pool = StatePool(states, PoolConfig(sampling="learnability"), kinds)
    pool.learn({one.id: [0.5, 0.5] if place % 2 else [0.0, 1.0] for place, one in enumerate(states[:40])})
    new = [kinds[one.task] for seed in range(20) for one in pool.sample(np.random.default_rng(seed), 16)]
    assert len(new) == 320 and new.count("tabular") > 260
    assert len({one.task for one in pool.sample(np.random.default_rng(0), 400)}) == 400


def test_a_restored_pool_draws_as_the_original():
    config = PoolConfig(refresh_fraction=0.5, sampling="learnability")
    pool = StatePool(EXPERT, config)
    pool.reach(state("new", i) for i in range(3))
    pool.learn({EXPERT[0].id: [0.0, 1.0]})
    again = StatePool(EXPERT, config)
    again.restore(pool.to_dict())
    draws = [[s.id for s in p.sample(np.random.default_rng(5), 12)] for p in (pool, again)]
    assert draws[0] == draws[1]


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="pool is empty"):
        StatePool([], PoolConfig())
