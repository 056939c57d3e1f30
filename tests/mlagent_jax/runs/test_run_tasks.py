"""A suite's tasks in a run: found by the index alone, prepared once, when they are first needed."""

import json
import types

import pytest

from environments import tasks
from environments.tasks.task import TaskError
from mlagent_jax.runs.named_tasks import Place, find, places
from mlagent_jax.runs.run_tasks import RunSpecs, RunTasks
from mlagent_jax.runtime.errors import ConfigError


@pytest.fixture
def prepared(monkeypatch):
    """Names of tasks in the order in which they were prepared."""
    done = []

    def prepare(place, root, seed, sandbox, warn):
        name = place.rstrip("/").rpartition("/")[2]
        done.append(name)
        return types.SimpleNamespace(key=f"{name}@{seed}", spec=f"spec of {name}")

    monkeypatch.setattr(tasks, "prepare", prepare)
    return done


def suite(folder, count):
    lines = [json.dumps({"name": f"task-{place}", "kind": "tabular"}) for place in range(count)]
    (folder / "suite.jsonl").write_text("\n".join(lines) + "\n")
    return f"suite:{folder}"


def test_ten_thousand_references_prepare_only_what_is_needed(tmp_path, prepared):
    places = find(suite(tmp_path, 10_000))
    run_tasks = RunTasks(tmp_path, 7, lambda: None)
    for place in places:
        run_tasks.add(place)
    assert len(run_tasks) == 10_000 and all(place.lazy for place in places) and prepared == []
    specs = RunSpecs(run_tasks)
    assert run_tasks["task-9999"].key == "task-9999@7"
    assert specs["task-3@7"] == "spec of task-3"
    assert "task-4@8" not in specs and "other@7" not in specs
    _ = run_tasks["task-9999"]
    assert prepared == ["task-9999", "task-3", "task-4"]


def test_the_reason_why_a_suite_s_task_cannot_be_prepared_is_told(tmp_path, monkeypatch):
    def prepare(place, *_, warn):
        raise TaskError(f"{place}: no data")

    monkeypatch.setattr(tasks, "prepare", prepare)
    run_tasks = RunTasks(tmp_path, 7, lambda: None)
    run_tasks.add(find(suite(tmp_path, 1))[0])
    for look in (RunSpecs(run_tasks).__getitem__, RunSpecs(run_tasks).__contains__):
        with pytest.raises(TaskError, match="no data"):
            look("task-0@7")


def test_a_suite_and_single_tasks_mix_and_a_missing_suite_says_how_to_make_one(tmp_path):
    assert find("iris") == [Place("iris", "iris")]
    assert [place.name for place in find(suite(tmp_path, 3) + "#task-[01]")] == ["task-0", "task-1"]
    with pytest.raises(TaskError, match="build-suite"):
        find(f"suite:{tmp_path / 'none'}")


def test_tasks_of_one_table_are_not_both_trained_on_and_held_out(tmp_path):
    lines = [{"name": name, "kind": "tabular", "table": name[0]} for name in ("a1", "a2", "b1")]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def config(held_out):
        named = {"train": [f"suite:{tmp_path}#a1"], "held_out": [f"suite:{tmp_path}#{held_out}"]}
        return types.SimpleNamespace(tasks=types.SimpleNamespace(**named, micro_train=0, micro_held_out=0, seed=0))

    assert list(places(config("b*"))) == ["a1", "b1"]
    with pytest.raises(ConfigError, match="'a2' is of the table a, as 'a1'"):
        places(config("a2"))
