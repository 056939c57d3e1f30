"""A search over made-up executions: what the tree holds, whatever interrupts it and however many processes share it."""

import contextlib
import dataclasses
import random
import subprocess
import sys
import threading
import time
import types

import pytest

from environments.cancellation import is_cancelled
from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from environments.queue import open_queue
from environments.queue.base import Capabilities, QueueError
from environments.registry import RegistryError
from mlagent_jax.agents.episodes import Agent, Reply
from mlagent_jax.runtime.errors import BudgetError, ConfigError
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.executors import Fleet, LocalSlots
from mlagent_jax.search.memory import MAX_LINES, memory
from mlagent_jax.search.run import IDLE_STEPS, UNREADABLE, Search, Settings
from mlagent_jax.search.store import LEASE_SECONDS, TreeStore
from mlagent_jax.search.strategies import STRATEGIES
from mlagent_jax.search.tree import Plan, Result, Tree, by_operator, totals

SCALE = Scale(m_init=0.5, m_best=0.9, higher_is_better=True)
START = State(task="t@1", history=(), snapshot="s", script="0", metric=0.5)
NAMES = ("best_of_n:n=3", "episodes:steps=4", "evolution:population=3", "greedy:drafts=3", "mcts")


def outcome_of(job: Job) -> Outcome:
    """A score that follows from the action and the state, and now and then a failure."""
    luck = random.Random(job.action)
    kind = OutcomeKind.SCRIPT_ERROR if luck.random() < 0.25 else OutcomeKind.SCORED
    metric = min(0.9, job.state.metric + luck.uniform(-0.1, 0.1))
    return Outcome(
        kind=kind,
        observation=f"printed {job.action}",
        snapshot=job.action,
        script=job.action,
        metric_before=job.state.metric,
        metric_after=metric if kind is OutcomeKind.SCORED else None,
        scale=SCALE,
        reward=0.5,
        progress=("parsed", "applied", "started"),
        diff=f"+++ b\n+x = {job.action}",
        submission=job.action,
    )


class Numbered(Agent):
    """Gives each step another action."""

    def act(self, trajectories, depth):
        return [Reply(f"{t.seed}:{len(t.steps)}:{t.state.operator}", completion_tokens=10) for t in trajectories]


class Immediate:
    """Executes in `wait`, one job a call, and stops the process at a given one."""

    def __init__(self, stop_at=-1):
        self.waiting, self.done, self.stop_at = {}, 0, stop_at

    def submit(self, number, job):
        self.waiting[number] = job

    def wait(self, seconds):
        if self.done == self.stop_at:
            raise KeyboardInterrupt
        self.done += 1
        number = min(self.waiting)
        return {number: outcome_of(self.waiting.pop(number))}

    def close(self):
        pass


def search(folder, strategy="greedy", budget="20 executions", agent=None, executor=None, slots=1, seed=0):
    settings = Settings(STRATEGIES.choose(strategy), Budget.parse(budget), seed, slots)
    with TreeStore(folder, {"strategy": strategy, "seed": seed}, START, SCALE) as store:
        ended = Search(
            store,
            settings,
            agent or Numbered(),
            lambda state, a: Job("r", 0, state, 0, a.text),
            executor or Immediate(),
        ).run()
        return ended, shape(store.refresh())


def shape(tree: Tree):
    return [(node.plan, node.kind, node.result.action, node.metric) for node in tree.finished()]


@pytest.mark.parametrize("strategy", NAMES)
def test_one_seed_and_one_slot_give_one_tree_and_another_seed_another(tmp_path, strategy):
    first, again, other = (search(tmp_path / str(i), strategy, seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert first == again
    assert len(first[1]) == 20
    assert "20 executions" in first[0]
    assert other[1] != first[1]


@pytest.mark.parametrize("strategy", NAMES)
def test_a_killed_search_goes_on_as_if_nothing_had_happened(tmp_path, strategy):
    whole = search(tmp_path / "whole", strategy)
    for stop_at in (0, 7):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "killed", strategy, executor=Immediate(stop_at))
    assert search(tmp_path / "killed", strategy) == whole


def test_the_step_of_a_process_that_died_is_taken_by_the_next(tmp_path):
    program = (
        "import sys, os; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from test_search import *\n"
        "store = TreeStore(Path(sys.argv[1]), {'strategy': 'greedy', 'seed': 0}, START, SCALE)\n"
        "assert store.claim(lambda tree, number: Plan('draft', 0)).number == 1\n"
        "os._exit(9)\n"
    )
    folder = str(__file__).rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), folder], check=False)
    assert done.returncode == 9
    _, nodes = search(tmp_path, budget="1 executions")
    assert [plan for plan, *_ in nodes] == [Plan("draft", 0)]


def test_a_step_is_leased_to_one_process_and_a_late_result_is_refused(tmp_path):
    facts = {"seed": 0}
    with TreeStore(tmp_path, facts, START, SCALE) as one, TreeStore(tmp_path, facts, START, SCALE) as other:
        assert one.claim(lambda tree, number: Plan("draft", 0)).number == 1
        assert other.claim(lambda tree, number: Plan("draft", 0)).number == 2
        result = Result("a", outcome_of(Job("r", 0, START, 0, "a")))
        assert not other.finish(1, result)
        assert one.finish(1, result)
        assert not one.finish(1, result)
        assert other.refresh().nodes[1].result == result


def test_a_process_does_not_claim_its_own_step_again_after_the_host_slept(tmp_path, monkeypatch):
    clock = types.SimpleNamespace(now=time.time())
    monkeypatch.setattr("mlagent_jax.search.store.time", types.SimpleNamespace(time=lambda: clock.now))
    facts = {"seed": 0}
    with TreeStore(tmp_path, facts, START, SCALE) as one, TreeStore(tmp_path, facts, START, SCALE) as other:
        assert one.claim(lambda tree, number: Plan("draft", 0)).number == 1
        clock.now += 2 * LEASE_SECONDS
        assert one.claim(lambda tree, number: Plan("draft", 0)).number == 2
        assert other.claim(lambda tree, number: Plan("draft", 0)).number == 3
        assert one.finish(1, Result("a", outcome_of(Job("r", 0, START, 0, "a"))))


def test_processes_share_one_tree_and_its_budget(tmp_path):
    ended = []
    threads = [
        threading.Thread(target=lambda: ended.append(search(tmp_path, budget="30 executions", slots=2)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 3
    with TreeStore(tmp_path, {"strategy": "greedy", "seed": 0}, START, SCALE) as store:
        assert sorted(store.tree.nodes) == list(range(31))
        assert totals(store.tree, time.time()).executions == 30


def test_a_folder_belongs_to_its_settings(tmp_path):
    search(tmp_path, budget="1 executions")
    with pytest.raises(ConfigError, match="seed was 0, is 3"):
        search(tmp_path, seed=3)


def test_a_larger_budget_continues_the_search(tmp_path):
    _, first = search(tmp_path, budget="5 executions")
    _, more = search(tmp_path, budget="9 executions")
    assert more[:5] == first
    assert len(more) == 9
    assert more == search(tmp_path / "at_once", budget="9 executions")[1]


def test_an_agent_without_budget_claims_no_more_steps_while_others_are_executed(tmp_path):
    class Poor(Numbered):
        asked = 0

        def act(self, trajectories, depth):
            self.asked += 1
            if self.asked > 1:
                raise BudgetError("the endpoint's money is spent")
            return super().act(trajectories, depth)

    class Slow(Immediate):
        calls = 0

        def wait(self, seconds):
            self.calls += 1
            return {} if 1 < self.calls < 8 else super().wait(seconds)

    facts = {"strategy": "greedy", "seed": 0}
    ended, nodes = search(tmp_path, agent=Poor(), executor=Slow(), slots=2)
    assert ended == "the endpoint's money is spent"
    assert len(nodes) == 2
    with TreeStore(tmp_path, facts, START, SCALE) as store:
        assert len(store.tree) == 3  # one step waits for the next start
    assert len(search(tmp_path)[1]) == 20


def test_greedy_drafts_first_then_improves_the_best_or_repairs(tmp_path):
    _, nodes = search(tmp_path, "greedy:drafts=4,debug=0.5", "60 executions")
    assert [plan.operator for plan, *_ in nodes[:4]] == ["draft"] * 4
    best = {0: 0.5}
    for number, (plan, kind, _, metric) in enumerate(nodes, 1):
        if plan.operator == "improve":
            assert plan.parent == max(best, key=lambda node: (best[node], -node))
        if plan.operator == "debug":
            assert nodes[plan.parent - 1][1] == "script_error"
        if kind == "scored":
            best[number] = metric
    assert {plan.operator for plan, *_ in nodes} == {"draft", "improve", "debug"}


def test_evolution_combines_two_different_scripts_the_better_first(tmp_path):
    _, nodes = search(tmp_path, "evolution:population=4,crossover=0.5", "60 executions")
    combined = [plan for plan, *_ in nodes if plan.operator == "combine"]
    metric = {number: node[3] for number, node in enumerate(nodes, 1)} | {0: 0.5}
    assert combined
    for plan in combined:
        assert plan.parent != plan.other
        assert metric[plan.parent] >= metric[plan.other]


def test_best_of_n_moves_to_the_best_of_n_and_waits_for_all(tmp_path):
    _, nodes = search(tmp_path, "best_of_n:n=3", "30 executions", slots=2)
    children: dict[int, list] = {}
    for number, (plan, _, _, metric) in enumerate(nodes, 1):
        children.setdefault(plan.parent, []).append((metric or 0.0, -number))
    node, score = 0, 0.5
    for _ in range(len(children)):
        assert node in children
        whole = children[node][: len(children[node]) // 3 * 3]
        best = max(whole, default=(0.0, 0))
        if best[0] <= score:
            break
        score, node = best[0], -best[1]


def test_episodes_start_over_after_their_steps(tmp_path):
    _, nodes = search(tmp_path, "episodes:steps=4", "10 executions")
    assert [plan.parent for plan, *_ in nodes] == [0, 1, 2, 3, 0, 5, 6, 7, 0, 9]


def test_mcts_goes_deep_where_scores_are_high_and_still_drafts(tmp_path):
    _, nodes = search(tmp_path, "mcts", "120 executions")
    depth = {0: 0}
    for number, (plan, *_) in enumerate(nodes, 1):
        depth[number] = depth[plan.parent] + 1
    assert max(depth.values()) >= 4
    assert sum(plan.operator == "draft" for plan, *_ in nodes) >= 4


def test_the_critics_value_draws_mcts_to_a_state():
    tree = Tree(START, SCALE)
    for number, value in ((1, 0.0), (2, 1.0)):
        outcome = dataclasses.replace(
            outcome_of(Job("r", 0, START, 0, "a")), kind=OutcomeKind.SCORED, metric_after=0.6, script=str(number)
        )
        tree.add(number, Plan("draft", 0), Result("a", outcome, value=value), 0.0, 1.0)
    choose = STRATEGIES.choose("mcts:width=1,widening=0.5")
    assert choose(tree, random.Random(0)).parent == 2


def test_an_agent_that_runs_nothing_ends_the_search(tmp_path):
    class Silent(Agent):
        def act(self, trajectories, depth):
            return [None] * len(trajectories)

    class Blind(Numbered):
        def fits(self, state):
            return False

    for number, (agent, reason) in enumerate(((Silent(), "the agent gave no answer"), (Blind(), UNREADABLE))):
        ended, nodes = search(tmp_path / str(number), agent=agent)
        assert f"last {IDLE_STEPS} steps ran no script" in ended
        assert {kind for _, kind, *_ in nodes} == {"no_action"}
        with TreeStore(tmp_path / str(number), {"strategy": "greedy", "seed": 0}, START, SCALE) as store:
            assert store.tree.nodes[1].result.reason == reason


def test_hosts_that_fail_end_the_search_and_count_no_execution(tmp_path):
    class Broken(Immediate):
        def wait(self, seconds):
            ((number, outcome),) = super().wait(seconds).items()
            lost = dict(kind=OutcomeKind.INFRASTRUCTURE_ERROR, progress=(), reward=None, reason="the disk is full")
            return {number: dataclasses.replace(outcome, **lost)}

    ended, nodes = search(tmp_path, executor=Broken())
    assert ended == "scripts cannot be executed: the disk is full"
    assert len(nodes) == 5


def test_tokens_and_failures_are_counted_by_kind(tmp_path):
    ended, nodes = search(tmp_path, "greedy:drafts=3", "95 tokens")
    assert "95 tokens" in ended
    assert len(nodes) == 10
    with TreeStore(tmp_path, {"strategy": "greedy:drafts=3", "seed": 0}, START, SCALE) as store:
        figures = by_operator(store.tree)
        scored = sum(kind == "scored" for plan, kind, *_ in nodes if plan.operator == "draft")
        assert figures["draft"]["scored"] == scored / 3
        assert sum(row["steps"] for row in figures.values()) == 10


@pytest.mark.parametrize("text", ["", "many", "3 hours of work", "5m, 6m", "0 executions", "$5 tokens", "5"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--budget"):
        Budget.parse(text)


def test_a_budget_has_minutes_executions_tokens_and_money():
    assert Budget.parse("1.5h, 200 executions, 2M tokens, $7.5") == Budget(5400, 200, 2e6, 7.5)
    assert Budget.parse("20m, 3 USD") == Budget(seconds=1200, money=3)
    with pytest.raises(RegistryError, match="Did you mean 'greedy'"):
        STRATEGIES.choose("gredy")


def test_memory_has_the_most_useful_first_and_no_score(tmp_path):
    search(tmp_path, "greedy:drafts=9", "60 executions")
    with TreeStore(tmp_path, {"strategy": "greedy:drafts=9", "seed": 0}, START, SCALE) as store:
        lines = memory(store.tree)
        moved = [abs(node.result.outcome.delta or 0.0) for node in store.tree.finished()]
        best = max(range(len(moved)), key=lambda place: (round(moved[place] / SCALE.gap, 2), place))
        assert len(lines) == MAX_LINES
        assert f"x = {store.tree.nodes[best + 1].result.action}" in lines[0]
        assert not any(f"{node.metric:.4f}" in line for node in store.tree.scored() for line in lines)


def test_a_reply_with_half_a_character_is_kept(tmp_path):
    class Torn(Agent):
        def act(self, trajectories, depth):
            return [Reply("half \ud800") for _ in trajectories]

    _, nodes = search(tmp_path, budget="1 executions", agent=Torn())
    assert nodes[0][2].startswith("half")


def test_a_fleet_executes_the_steps_and_one_that_dies_ends_the_search(tmp_path):
    stop = threading.Event()

    def work():
        with contextlib.closing(open_queue(url)) as queue:
            while not stop.is_set():
                if lease := queue.claim("worker", Capabilities(image="image")):
                    queue.complete(lease, outcome_of(lease.job))
                stop.wait(0.01)

    url = f"sqlite:///{tmp_path / 'queue.db'}"
    with contextlib.closing(open_queue(url)) as queue:
        worker = threading.Thread(target=work)
        worker.start()
        _, nodes = search(tmp_path / "fleet", budget="12 executions", slots=3, executor=Fleet(queue, "s", "image"))
        stop.set()
        worker.join()
        assert len(nodes) == 12
        with pytest.raises(QueueError, match="worker"):
            search(tmp_path / "dead", executor=Fleet(queue, "d", "image", silence_seconds=0.2))


def test_local_slots_run_at_once_and_stop_when_closed():
    inside, both = [], threading.Barrier(2, timeout=20)

    def take(job):
        inside.append(job)
        if len(inside) <= 2:
            both.wait()
            return outcome_of(job)
        while not is_cancelled():
            time.sleep(0.01)
        return outcome_of(job)

    slots = LocalSlots(take, 2)
    jobs = [Job("r", 0, START, 0, str(number)) for number in range(3)]
    for number, job in enumerate(jobs[:2]):
        slots.submit(number, job)
    done = {}
    while len(done) < 2:
        done |= slots.wait(20)
    assert done == {0: outcome_of(jobs[0]), 1: outcome_of(jobs[1])}
    slots.submit(2, jobs[2])
    slots.close()
    assert len(inside) <= 3
