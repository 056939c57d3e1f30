"""Whatever bytes a submission or a task.yaml holds, reading them ends in a value or in the one error for it."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuzzing import few
from hypothesis import example, given
from hypothesis import strategies as st

from environments import tasks
from environments.tasks import InvalidSubmissionError, TaskError
from environments.tasks.folders.fields import FIELDS
from environments.tasks.grading import tables

RENTS = Path(__file__).parents[4] / "docs" / "examples" / "rents"
KINDS = {"n": "number", "i": "integer", "p": "probability", "t": "text"}
IDS = ("NA", "001", "1.10", "a,b", 'say "so"', "two\nlines")


def write(header, rows, **dialect):
    text = io.StringIO()
    csv.writer(text, **dialect).writerows([header, *rows])
    return text.getvalue().encode()


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=30)
"""Without the character that Python's csv.writer leaves unquoted, though it ends a line."""
cells = st.tuples(
    st.floats(-tables.LARGEST, tables.LARGEST).map(repr),
    st.integers(-(10**18) + 1, 10**18 - 1).map(str),
    st.floats(0, 1).map(repr),
    texts | st.sampled_from(["", "NA", "None", "True", "001", "1e5", "2024-01", "x" * 90_000]),
)


@few
@given(st.lists(cells, min_size=len(IDS), max_size=len(IDS)), st.permutations(range(len(IDS))), st.booleans())
def test_what_is_handed_in_is_what_is_graded(rows, order, quoted):
    dialect = {"quoting": csv.QUOTE_ALL} if quoted else {"lineterminator": "\n"}
    data = write(["id", *KINDS], [[IDS[place], *rows[place]] for place in order], **dialect)
    read = tables.read_submission(data, "id", KINDS, IDS)
    assert read["id"] == IDS
    frame = tables.frame(read, KINDS)
    for place, (number, integer, probability, text) in enumerate(rows):
        assert frame.loc[place, "n"] == float(number) and frame.loc[place, "i"] == int(integer)
        assert frame.loc[place, "p"] == float(probability) and frame.loc[place, "t"] == text
    assert frame["i"].dtype == np.int64 and frame["n"].dtype == float


@few
@given(st.binary(max_size=300) | texts.map(str.encode))
@example(b'id,n,i,p,t\n"')
@example(b"\xef\xbb\xbfid,n,i,p,t\n\x00")
@example(b"," * 1_000_000)
@example(b"id,n,i,p,t\n" + b'"' + b"x" * 200_000 + b'"\n')
def test_any_bytes_are_a_table_or_an_invalid_submission(data):
    with contextlib.suppress(InvalidSubmissionError):
        tables.read_submission(data, "id", KINDS, IDS)


WRONG = {
    "integer": ["1" * 19, "1.5", "1e5", "", "x"],
    "number": ["1e101", "nan", "-inf", "", " 1", "\u0663", "1_000", "0x10"],
    "probability": ["1.01", "-0.1", ""],
    "text": ["x" * 100_001],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_cell_of_another_kind_is_refused_with_the_reason(kind):
    for cell in WRONG[kind]:
        with pytest.raises(InvalidSubmissionError, match=r"row 2: c is .*, not ") as error:
            tables.read_submission(write(["id", "c"], [["a", cell]]), "id", {"c": kind}, ["a"])
        assert tables.KINDS[kind].what in str(error.value)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | texts
trees = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4), max_leaves=8
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the example folder for all examples: the fixture `rents` is one for each test."""
    return shutil.copytree(RENTS, tmp_path_factory.mktemp("folder") / "rents")


@few
@given(st.sampled_from([*FIELDS, "other"]), trees, st.data())
def test_any_value_of_any_field_is_read_or_named(folder, name, value, data):
    record = yaml.safe_load((folder / "task.yaml").read_text())
    inner = record.get(name)
    if isinstance(inner, dict) and data.draw(st.booleans()):
        value = inner | {data.draw(st.sampled_from(sorted(inner))): value}
    changed = folder.parent / "changed"
    if not changed.exists():
        shutil.copytree(folder, changed)
    (changed / "task.yaml").write_text(yaml.safe_dump(record | {name: value}))
    with contextlib.suppress(TaskError):
        tasks.get(str(changed))


@few
@given(st.binary(max_size=200) | texts.map(lambda text: f"name: {text}\nm_best: {text}\n".encode()))
@example(b"gpus: 0x" + b"f" * 10_000)
@example(b'name: "\\ud800"')
@example(b"name: !!bool x")
@example(b"name: !!timestamp x")
@example(b"name: !!float ''")
@example(b"name: !!python/object/apply:os.system [true]")
@example(b"ideas: [{text: a, cell: model, code: '" + b"(" * 100_000 + b"'}]")
@example(b"ideas: [{text: a, cell: model, code: '" + b"-" * 100_000 + b"1'}]")
def test_any_bytes_are_a_task_yaml_or_a_task_error(folder, data):
    kept = (folder / "task.yaml").read_bytes()
    try:
        for text in (data, kept + b"\n" + data):
            (folder / "task.yaml").write_bytes(text)
            with contextlib.suppress(TaskError):
                tasks.get(str(folder))
    finally:
        (folder / "task.yaml").write_bytes(kept)
