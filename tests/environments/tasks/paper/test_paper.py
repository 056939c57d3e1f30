"""The paper's 19 tasks, each from a small archive in its source's true layout: prepared, started, graded and refused as
they should be, and their metrics against scikit-learn or a plain loop."""

from __future__ import annotations

import io
import os
import shutil
import zipfile

import needs
import numpy as np
import pandas as pd
import paper_archives
import pytest
from sklearn import metrics as sk

from environments import tasks
from environments.interfaces.command_line import main
from environments.sandbox.base import Ending
from environments.tasks import InvalidSubmissionError, TaskError, graders, paper
from environments.tasks.check.examination import examine
from environments.tasks.folders import archives, splits
from environments.tasks.running import run_script

needs.package("PIL.Image")
NAMES = paper.names()
TRAINING = 9
HELD_OUT = 10


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """`make(name)`: the archive of a task is there, made once."""
    root = tmp_path_factory.mktemp("archives")

    def make(name):
        if not (root / name).exists():
            if name == "cifar-10":
                pytest.importorskip("tensorflow_datasets")
            paper_archives.make(name, root / name)
        return root

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLAGENT_DATA_DIR", str(root))
        patch.setenv("TFDS_DATA_DIR", str(root / "cifar-10"))
        yield make


@pytest.fixture(scope="session")
def built(data, tmp_path_factory):
    """`get(name)`: the folder that a recipe writes for seed 0, and its grader, made once."""
    root, found = tmp_path_factory.mktemp("built"), {}

    def get(name):
        if name not in found:
            data(name)
            found[name] = build(name, root / name)
        return found[name]

    return get


def build(name, directory, seed=0):
    """The folder that a recipe writes, and its grader."""
    directory.mkdir()
    tasks.get(name).build(directory, seed)
    return directory, graders.load_in_process(directory / "private")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def perfect(name, grader):
    """The submission that says exactly what is hidden."""
    answers, columns = grader.answers, list(grader.form.columns)
    if name in ("leaf-classification", "spooky-author-identification"):
        table = pd.get_dummies(answers.iloc[:, 1]).reindex(columns=columns, fill_value=0).astype(float)
        table.insert(0, grader.form.id_column, answers.iloc[:, 0])
    else:
        table = answers[[grader.form.id_column, *columns]]
    return table


def as_bytes(table):
    return table.to_csv(index=False).encode()


def test_they_are_the_papers_nineteen():
    split = [tasks.get(name).spec.split for name in NAMES]
    assert (split.count("train"), split.count("held_out")) == (TRAINING, HELD_OUT)
    for name in NAMES:
        spec = tasks.get(name).spec
        assert spec.name == name and len(spec.ideas) >= 5, name
        assert "m_best is" in spec.source, name


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_made_from_its_archive_and_graded(name, built, tmp_path):
    directory, grader = built(name)
    again, _ = build(name, tmp_path / "again")
    assert files(directory) == files(again), "the same seed gives the same files"
    other, _ = build(name, tmp_path / "other", seed=1)
    assert files(directory / "private") != files(other / "private")
    spec, table = tasks.get(name).spec, perfect(name, grader)
    best = 1.0 if spec.higher_is_better else 0.0
    assert grader.rows == len(table) and 0 < grader.report.sum() < grader.rows
    for half in ("reward", "report"):
        assert grader.grade(as_bytes(table), half) == pytest.approx(best, abs=1e-12)
    # The sample is a submission, and worse.
    sample = directory / "public" / "sample_submission.csv"
    score = grader.grade(sample.read_bytes(), "reward")
    assert score < best if spec.higher_is_better else score > best
    for broken in (
        table[1:],
        pd.concat([table, table[:1]]),
        table.iloc[:, :-1],
        table.rename(columns={table.columns[-1]: "x"}),
    ):
        with pytest.raises(InvalidSubmissionError):
            grader.grade(as_bytes(broken), "reward")
    with pytest.raises(InvalidSubmissionError):
        grader.grade(as_bytes(table.assign(**{table.columns[-1]: "of no kind at all, is it"})), "reward")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_starting_script_runs_and_leaves_headroom(name, data, tmp_path, bubblewrap):
    data(name)
    task = tasks.prepare(name, tmp_path, 0, bubblewrap)
    for scale in (task.scale, task.report_scale):
        assert scale.delta(scale.m_init, scale.m_best) > 0
    assert tasks.get(name).m_best in (None, task.scale.m_best)
    assert not {path.name for path in task.public.iterdir()} & {"answers.csv"}
    found = examine(task)
    assert found.leaks == () and found.shortcuts == ()


def test_an_edit_of_a_task_is_scored(built, bubblewrap):
    name = "us-patent-phrase-to-phrase-matching"
    directory, grader = built(name)
    task = tasks.get(name)
    script = (directory / "env" / "train.py").read_text().replace("Ridge()", "Ridge(alpha=10)")
    run = run_script(script, directory, task.spec, bubblewrap)
    execution, submission = run.execution, run.submission
    assert execution.ending is Ending.EXITED and "validation pcc" in execution.stdout, execution.stderr
    assert -1 <= grader.grade(submission, "reward") <= 1


def halves(grader, table):
    chosen = ~grader.report
    return table[chosen].reset_index(drop=True), grader.answers[chosen].reset_index(drop=True)


def random_table(name, grader, rng):
    """A submission of random cells of the right kinds."""
    form = grader.form
    table = pd.DataFrame({form.id_column: grader.answers[form.id_column]})
    for column, kind in form.columns.items():
        if kind == "text":
            known = sorted(set(grader.answers[column].astype(str)))
            cells = [" ".join(rng.permutation(known)[: rng.integers(1, 6)]) for _ in range(len(table))]
            table[column] = cells if column == "Id" else rng.choice(known, len(table))
        elif kind == "integer":
            table[column] = rng.choice(grader.answers[column], len(table))
        else:
            table[column] = rng.random(len(table)).round(6)
    return table


def columnwise(function):
    def score(guess, truth, columns):
        return np.mean([function(truth[column], guess[column]) for column in columns])

    return score


def first(function):
    return lambda guess, truth, columns: function(truth[columns[0]], guess[columns[0]])


def scaled(label):
    def score(guess, truth, columns):
        share = guess[columns].div(guess[columns].sum(axis=1), axis=0)
        return sk.log_loss(truth[label], share, labels=columns)

    return score


def average_precision(guess, truth, columns):
    total = 0.0
    for names, right in zip(guess["Id"], truth["Id"], strict=True):
        for place, name in enumerate(names.split()[:5], start=1):
            if name == right:
                total += 1 / place
                break
    return total / len(truth)


INDEPENDENT = {
    "aerial-cactus-identification": first(sk.roc_auc_score),
    "cifar-10": first(sk.accuracy_score),
    "denoising-dirty-documents": first(sk.root_mean_squared_error),
    "detecting-insults-in-social-commentary": first(sk.accuracy_score),
    "dogs-vs-cats-redux-kernels-edition": first(sk.log_loss),
    "feedback-prize-english-language-learning": columnwise(sk.root_mean_squared_error),
    "home-data-for-ml-course": first(sk.mean_absolute_error),
    "jigsaw-toxic-comment-classification-challenge": columnwise(sk.roc_auc_score),
    "leaf-classification": scaled("species"),
    "learning-agency-lab-automated-essay-scoring-2": first(
        lambda a, b: sk.cohen_kappa_score(a, b, weights="quadratic")
    ),
    "nomad2018-predict-transparent-conductors": columnwise(sk.root_mean_squared_log_error),
    "ogbn-arxiv": first(sk.accuracy_score),
    "plant-pathology-2020-fgvc7": columnwise(sk.roc_auc_score),
    "spaceship-titanic": first(lambda a, b: np.mean([str(x) == y for x, y in zip(a, b, strict=True)])),
    "spooky-author-identification": scaled("author"),
    "statoil-iceberg-classifier-challenge": first(sk.log_loss),
    "tabular-playground-series-dec-2021": first(sk.accuracy_score),
    "us-patent-phrase-to-phrase-matching": first(lambda a, b: np.corrcoef(a, b)[0, 1]),
    "whale-categorization-playground": average_precision,
}


@pytest.mark.parametrize("name", NAMES)
def test_its_metric_is_the_competitions(name, built):
    _, grader = built(name)
    rng = np.random.default_rng(3)
    for _ in range(3):
        table = random_table(name, grader, rng)
        guess, truth = halves(grader, table)
        expected = INDEPENDENT[name](guess, truth, list(grader.form.columns))
        shuffled = table.sample(frac=1, random_state=0)
        assert grader.grade(as_bytes(shuffled), "reward") == pytest.approx(expected, rel=1e-9)


def test_certain_and_wrong_costs_what_it_costs_on_kaggle(built):
    _, grader = built("statoil-iceberg-classifier-challenge")
    table = grader.answers.assign(is_iceberg=1 - grader.answers["is_iceberg"])[["id", "is_iceberg"]]
    assert grader.grade(as_bytes(table), "reward") == pytest.approx(-np.log(1e-15), rel=1e-4)


def test_what_belongs_together_is_on_one_side(built):
    directory, grader = built("spaceship-titanic")
    train = pd.read_csv(directory / "public" / "train.csv")
    groups = grader.answers["PassengerId"].str[:4]
    assert not set(train["PassengerId"].str[:4]) & set(groups)
    assert not set(groups[grader.report]) & set(groups[~grader.report])
    directory, _ = built("detecting-insults-in-social-commentary")
    train, test = (pd.read_csv(directory / "public" / f"{name}.csv") for name in ("train", "test"))
    assert len(train) + len(test) == 204 and not set(train["Comment"]) & set(test["Comment"])
    directory, grader = built("whale-categorization-playground")
    known = set(pd.read_csv(directory / "public" / "train.csv")["Id"])
    assert set(grader.answers["Id"]) <= known | {"new_whale"} and "new_whale" in set(grader.answers["Id"])
    directory, grader = built("denoising-dirty-documents")
    pages = grader.answers["id"].str.split("_").str[0]
    assert not set(pages[grader.report]) & set(pages[~grader.report])
    assert set(pages) == set(np.load(directory / "public" / "test.npz").files)


def test_texts_survive_as_they_are(built):
    directory, _ = built("feedback-prize-english-language-learning")
    read = [pd.read_csv(directory / "public" / f"{name}.csv", keep_default_na=False) for name in ("train", "test")]
    assert 'He said "null",\nand left\r\n\r\nfor good.' in set(pd.concat(read)["full_text"])


def test_the_graphs_nodes_are_numbered_anew_and_stay_the_same_graph(data, built):
    root = data("ogbn-arxiv")
    directory, grader = built("ogbn-arxiv")
    nodes, edges = (np.load(directory / "public" / f"{name}.npy") for name in ("nodes", "edges"))
    with archives.open_archive(root / "ogbn-arxiv", "arxiv.zip") as archive:
        features = archive.table("raw/node-feat.csv", header=None).to_numpy(np.float32)
        links = archive.table("raw/edge.csv", header=None).to_numpy()
        labels = archive.table("raw/node-label.csv", header=None).to_numpy()[:, 0]
    np.testing.assert_array_equal(nodes[edges], features[links])
    label_of = {row.tobytes(): label for row, label in zip(features, labels, strict=True)}
    mine = [label_of[nodes[int(node)].tobytes()] for node in grader.answers["node"]]
    assert grader.answers["label"].tolist() == mine and not np.array_equal(nodes, features)


# ---- archives that are not there, or not what they were


def test_a_missing_archive_is_an_error_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLAGENT_DATA_DIR", str(tmp_path))
    (tmp_path / "built").mkdir()
    with pytest.raises(
        TaskError, match=r"spooky.*\.zip is not there: accept the rules at .*kaggle competitions download"
    ):
        tasks.get("spooky-author-identification").build(tmp_path / "built", 0)
    with pytest.raises(TaskError, match=r"curl -L .*snap\.stanford\.edu"):
        tasks.get("ogbn-arxiv").build(tmp_path / "built", 0)
    assert main(["prepare", "leaf-classification"]) == 2
    assert "kaggle competitions download -c leaf-classification" in capsys.readouterr().err


def rewrite(source, target, change):
    """Copy a zip archive, its files changed by `change(files)`."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(paper_archives.packed(members))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("train.csv"), r"holds no train\.csv \(it holds .*test\.csv"),
        (lambda found: found.update({"train.csv": b"id,anchor,target,context\n1,a,b,c\n"}), "no column 'score'"),
        (lambda found: found.update({"train.csv": found["train.csv"] + b"x,a,b,c,high\n"}), "score holds 'high'"),
        (lambda found: found.update({"train.csv": b"id,anchor,target,context,score\n"}), "has no rows"),
        (lambda found: found.update({"train.csv": b""}), "cannot be read as a table"),
    ],
)  # fmt: skip
def test_a_changed_archive_is_an_error_that_says_what_and_how_to_get_it(data, tmp_path, monkeypatch, change, message):
    name = "us-patent-phrase-to-phrase-matching"
    rewrite(data(name) / name / f"{name}.zip", tmp_path / name / f"{name}.zip", change)
    monkeypatch.setenv("MLAGENT_DATA_DIR", str(tmp_path))
    (tmp_path / "built").mkdir()
    with pytest.raises(TaskError, match=f"{message}.*kaggle competitions download"):
        tasks.get(name).build(tmp_path / "built", 0)


def test_an_archive_that_was_cut_off_or_damaged_is_said_so(data, tmp_path):
    name = "spooky-author-identification"
    content = (data(name) / name / f"{name}.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(archives.ArchiveError, match="was cut off"), archives.open_archive(tmp_path, "cut.zip"):
        pass
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("train.csv", b"id,text\n" * 50)
    broken = bytearray(stream.getvalue())
    broken[60] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(broken)
    with archives.open_archive(tmp_path, "bad.zip") as archive, pytest.raises(archives.ArchiveError, match="damaged"):
        archive.read("train.csv")


@pytest.mark.parametrize("name", ["nomad2018-predict-transparent-conductors", "statoil-iceberg-classifier-challenge"])
def test_an_unpacked_archive_gives_the_same_task(name, data, built, tmp_path, monkeypatch):
    if name.startswith("statoil"):
        needs.package("py7zr")
    root = data(name)
    expected = files(built(name)[0])
    with zipfile.ZipFile(root / name / f"{name}.zip") as archive:
        archive.extractall(tmp_path / name)
    monkeypatch.setenv("MLAGENT_DATA_DIR", str(tmp_path))
    assert files(build(name, tmp_path / "unpacked")[0]) == expected


def test_nothing_is_unpacked_to_a_path_that_an_archive_names(tmp_path):
    inner = paper_archives.packed({"../../escaped.csv": b"id\n1\n", "/etc/escaped.csv": b"id\n1\n"})
    (tmp_path / "a.zip").write_bytes(paper_archives.packed({"../train.zip": inner}))
    before = files(tmp_path)
    with archives.open_archive(tmp_path, "a.zip") as archive:
        assert archive.read("escaped.csv") == b"id\n1\n"
    assert files(tmp_path) == before


def test_without_the_decoders_the_error_says_what_to_install(data, tmp_path, monkeypatch):
    load = __import__

    def without(name, *rest):
        if name in ("py7zr", "PIL"):
            raise ImportError(name)
        return load(name, *rest)

    for name in ("statoil-iceberg-classifier-challenge", "leaf-classification"):
        data(name)
        (tmp_path / name).mkdir()
        monkeypatch.setattr("builtins.__import__", without)
        with pytest.raises(TaskError, match=r"pip install '\.\[archives\]'"):
            tasks.get(name).build(tmp_path / name, 0)
        monkeypatch.undo()
        monkeypatch.setenv("MLAGENT_DATA_DIR", str(data(name)))


# ---- fetching


KAGGLE = """#!/bin/sh
[ "$1 $2 $3" = "competitions download -c" ] || exit 9
[ -z "$REFUSE" ] || { echo "403 - Forbidden" >&2; exit 1; }
cp "$ARCHIVE" "$6/$4.zip"
"""


@pytest.fixture
def kaggle(data, tmp_path, monkeypatch):
    """A program `kaggle` with the interface of the real one, which gives one archive."""
    name = "us-patent-phrase-to-phrase-matching"
    archive = data(name) / name / f"{name}.zip"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kaggle").write_text(KAGGLE)
    (tmp_path / "bin" / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ARCHIVE", str(archive))
    monkeypatch.setenv("MLAGENT_DATA_DIR", str(tmp_path / "data"))
    return name, tmp_path / "data" / name / f"{name}.zip"


def test_fetch_gets_an_archive_through_the_kaggle_client(kaggle, capsys, monkeypatch):
    name, path = kaggle
    monkeypatch.setenv("REFUSE", "1")
    assert main(["fetch", name]) == 2
    assert "403 - Forbidden; put your API token" in capsys.readouterr().err and not path.exists()
    monkeypatch.delenv("REFUSE")
    assert main(["fetch", name]) == 0 and path.is_file() and list(path.parent.iterdir()) == [path]
    assert main(["fetch", name]) == 0 and "is there already" in capsys.readouterr().out


def test_what_cannot_be_fetched_says_why(kaggle, tmp_path, capsys, monkeypatch):
    assert main(["fetch", "wine"]) == 2 and "need not be fetched" in capsys.readouterr().err
    assert main(["fetch", "cifar-10"]) == 2 and "tensorflow-datasets" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["fetch", kaggle[0]]) == 2 and "pip install kaggle" in capsys.readouterr().err
    source = tmp_path / "arxiv.zip"
    source.write_bytes(paper_archives.packed({"arxiv/x": b""}))
    origin = archives.Origin("url", source.as_uri())
    assert "arxiv.zip" in origin.fetch(tmp_path / "there") and (tmp_path / "there" / "arxiv.zip").is_file()


# ---- splitting


def test_a_split_is_by_groups_or_strata_and_by_the_seed_alone():
    table = pd.DataFrame(
        {"row": range(100), "group": [row // 5 for row in range(100)], "kind": [row % 4 for row in range(100)]}
    )
    train, test = splits.split(table, 0.2, 0, groups=table["group"])
    assert len(test) == 20 and not set(train["group"]) & set(test["group"])
    train, test = splits.split(table, 0.2, 0, strata=table["kind"])
    assert test["kind"].value_counts().tolist() == [5, 5, 5, 5]
    assert sorted([*train["row"], *test["row"]]) == list(range(100)) and train["row"].tolist() != sorted(train["row"])
    assert splits.split(table, 0.2, 0)[1].equals(splits.split(table, 0.2, 0)[1])
    assert not splits.split(table, 0.2, 0)[1].equals(splits.split(table, 0.2, 1)[1])
