"""Edits as functions of a script's text; the diff against the one of the standard library."""

import difflib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.actions import Action, ActionError, AgentFiles
from environments.actions.edits import (
    apply_patch,
    cell_name,
    plain,
    read_cells,
    replace_cell,
    replace_lines,
    unified_diff,
)

SCRIPT = "import a\n\n# %% data\nx = 1\n\n# %% model\nm = 1\nm += 1\n\n# %% submit\nsubmit(m)\n"
PATCH = "<<<<<<< SEARCH\nm = 1\n=======\nm = 7\n>>>>>>> REPLACE"


def patched(text, patch):
    new, is_repaired = apply_patch(text, patch)
    assert not is_repaired
    return new


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("# %% model", "model"),
        ("#%% model ", "model"),
        ("# %%", ""),
        ("# %% the model [markdown]", "the model"),
        ('# %% the model tags=["x"]', "the model"),
        ("    # %% model", None),
        ("# %% " + "a-" * 50_000, None),
        ("# %% " + " " * 100_000 + "x", None),
        ("x = 1  # %% model", None),
    ],
)
def test_cell_headers_are_jupytexts(line, name):
    assert cell_name(line) == name


def test_a_cell_is_replaced_and_its_header_and_margins_stay():
    assert replace_cell(SCRIPT, "model", "m = 5") == SCRIPT.replace("m = 1\nm += 1", "m = 5")
    assert replace_cell(SCRIPT, "submit", "submit(1)\n\n") == SCRIPT.replace("submit(m)", "submit(1)")
    assert list(read_cells(replace_cell(SCRIPT, "model", ""))) == ["data", "model", "submit"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace("# %%", "#%%"),
    ],
    ids=["plain", "CRLF", "mark", "mark and CRLF", "no space"],
)
def test_scripts_as_other_editors_save_them_are_edited_and_keep_their_form(tmp_path, change):
    """Each is one format for patches, cells, the diff and the library of ideas alike."""
    text = "# %% data\nx = 1\n\n# %% model [code]\nm = 1\n"
    files = AgentFiles(tmp_path)
    for name, arguments, block in (
        ("Edit Script (Patch)", {}, PATCH),
        ("Edit Script (Cell)", {"cell": "model"}, "m = 7"),
        ("Edit Script (Lines)", {"start_line_number": 5, "end_line_number": 5}, "m = 7"),
    ):
        (tmp_path / "train.py").write_bytes(change(text).encode())
        assert read_cells(files.read("train.py")) == {"data": "x = 1", "model": "m = 1"}
        same = Action(name, {"script_name": "train.py", **arguments}, block.replace("m = 7", "m = 1")).apply(files)
        assert not same.changed
        effect = Action(name, {"script_name": "train.py", **arguments}, block).apply(files)
        assert [line for line in effect.diff.split("\n")[3:] if line[0] in "+-"] == ["-m = 1", "+m = 7"]
        assert (tmp_path / "train.py").read_bytes() == change(text.replace("m = 1", "m = 7")).encode()
        Action("Undo Edit Script", {"script_name": "train.py"}).apply(files)
        assert (tmp_path / "train.py").read_bytes() == change(text).encode()


def test_a_file_with_line_ends_of_both_kinds_gets_one_kind_by_an_edit(tmp_path):
    (tmp_path / "train.py").write_bytes(b"m = 1\r\nx = 2\n")
    Action("Edit Script (Patch)", {"script_name": "train.py"}, PATCH).apply(AgentFiles(tmp_path))
    assert (tmp_path / "train.py").read_bytes() == b"m = 7\nx = 2\n"
    assert plain("\ufeffa\r\n\nb\r") == "a\n\nb\r"


def test_the_last_cell_may_end_without_a_newline_and_a_cell_may_be_empty():
    assert replace_cell("# %% a\nx", "a", "y") == "# %% a\ny"
    assert replace_cell("# %% a", "a", "y") == "# %% a\ny\n"
    assert replace_cell("# %% a\n# %% b\nx", "a", "y") == "# %% a\ny\n\n# %% b\nx"


@pytest.mark.parametrize("block", ["m = 1\nm += 1", "\n\nm = 1\nm += 1\n\n\n", "# %% model\nm = 1\nm += 1"])
def test_repeating_a_cell_is_no_edit(block):
    assert replace_cell(SCRIPT, "model", block) == SCRIPT


@pytest.mark.parametrize(
    ("text", "cell", "block", "message"),
    [
        (SCRIPT, "modle", "x", "no cell named 'modle'; the cells are: data, model, submit"),
        ("x = 1", "model", "x", "the cells are: none"),
        (SCRIPT + "# %% model\n", "model", "x", "2 cells named"),
        (SCRIPT, "model", "m = 1\n# %% submit\nsubmit(2)", "holds the header of cell 'submit'"),
    ],
)
def test_a_cell_edit_that_does_not_apply_says_why(text, cell, block, message):
    with pytest.raises(ActionError, match=message):
        replace_cell(text, cell, block)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["", "x", "# %% a", "# %% b"]), max_size=12),
    st.lists(st.sampled_from(["", "y"]), max_size=4),
)
def test_a_cell_edit_touches_nothing_outside_of_its_cell(lines, block):
    text = "\n".join(lines)
    if lines.count("# %% a") != 1:
        return
    header = lines.index("# %% a")
    after = [index for index in range(header + 1, len(lines)) if lines[index].startswith("#")]
    edited = replace_cell(text, "a", "\n".join(block)).split("\n")
    assert edited[: header + 1] == lines[: header + 1]
    if after:
        assert edited[-(len(lines) - after[0]) :] == lines[after[0] :]
    assert replace_cell("\n".join(edited), "a", "\n".join(block)) == "\n".join(edited)


def test_lines_are_replaced_inserted_and_deleted():
    assert replace_lines("a\nb\nc\n", 2, 2, "B\nBB") == "a\nB\nBB\nc\n"
    assert replace_lines("a\nb\n", 1, 0, "x") == "x\na\nb\n"
    assert replace_lines("a\nb\n", 1, 1, "") == "b\n"


@pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 1), (1, 9), (9, 9)])
def test_a_range_outside_of_the_file_is_refused(start, end):
    with pytest.raises(ActionError, match="ends at line 3"):
        replace_lines("a\nb\n", start, end, "x")


def test_a_patch_replaces_whole_lines_at_one_place():
    assert patched(SCRIPT, PATCH) == SCRIPT.replace("m = 1\n", "m = 7\n")
    assert patched(SCRIPT, f"{PATCH}\n\n" + PATCH.replace("= 7", "= 8").replace("m = 1", "m = 7")) == SCRIPT.replace(
        "m = 1\n", "m = 8\n"
    )
    deletion = "<<<<<<< SEARCH\nm = 1\nm += 1\n=======\n>>>>>>> REPLACE"
    assert patched(SCRIPT, deletion) == SCRIPT.replace("m = 1\nm += 1\n", "")
    assert patched("m = 1", PATCH) == "m = 7"


@pytest.mark.parametrize(
    ("text", "patch"),
    [
        (SCRIPT, PATCH.replace("m = 1", "m = 1  ")),
        (SCRIPT, PATCH.replace("m = 1", "\nm = 1\n")),
        (SCRIPT.replace("m = 1", "m = 1 \t"), PATCH),
    ],
)
def test_spaces_that_no_prompt_shows_are_no_reason_to_refuse_a_patch(text, patch):
    new, is_repaired = apply_patch(text, patch)
    assert is_repaired and [line.rstrip() for line in new.split("\n")] == SCRIPT.replace("m = 1", "m = 7").split("\n")
    with pytest.raises(ActionError, match="more than once"):
        apply_patch(text + "m = 1  \n" + "m = 1\t\n", patch.replace("m = 1", "m = 1 \t ", 1))


def test_a_search_that_matches_exactly_wins_over_one_that_matches_without_spaces():
    assert apply_patch("m = 1\nm = 1  \n", PATCH) == ("m = 7\nm = 1  \n", False)


@pytest.mark.parametrize(
    ("text", "patch", "message"),
    [
        ("xm = 1\n", PATCH, "is not in the file"),
        ("m = 12\n", PATCH, "no line is `m = 1`, but there is `m = 12`"),
        ("  m = 1\n", PATCH, "its lines are: mind their order and indentation"),
        ("m = 1\nm = 1\n", PATCH, "more than once"),
        (SCRIPT, "m = 7", "made of blocks"),
        (SCRIPT, "", "has no block"),
        (SCRIPT, PATCH.removesuffix("\n>>>>>>> REPLACE"), "no line >>>>>>> REPLACE"),
        (SCRIPT, "<<<<<<< SEARCH\nm = 1", "no line ======="),
        (SCRIPT, PATCH.replace("m = 1\n", ""), "is empty"),
    ],
)
def test_a_patch_that_does_not_apply_says_why(text, patch, message):
    with pytest.raises(ActionError, match=message):
        apply_patch(text, patch)


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
def test_the_diff_turns_the_old_text_into_the_new(before, after):
    diff = unified_diff("\n".join(before), "\n".join(after), "f")
    lines, position, result = ("\n".join(before)).split("\n"), 0, []
    for line in diff.split("\n")[2:]:
        if line.startswith("@@"):
            start = int(line.split()[1][1:].split(",")[0])
            count = line.split()[1].split(",")[1] if "," in line.split()[1] else "1"
            start = start if count == "0" else start - 1
            result += lines[position:start]
            position = start
        elif line.startswith("+"):
            result.append(line[1:])
        elif line:
            assert lines[position] == line[1:]
            position += 1
            result += [line[1:]] if line[0] == " " else []
    assert "\n".join(result + lines[position:]) == "\n".join(after)


def test_the_diff_of_a_local_edit_is_the_standard_librarys():
    old = "\n".join(f"line {number}" for number in range(100))
    new = old.replace("line 50\n", "changed\nadded\n")
    expected = difflib.unified_diff(old.split("\n"), new.split("\n"), "f", "f", lineterm="")
    assert unified_diff(old, new, "f") == "\n".join(expected)


def test_a_text_made_to_be_hard_to_align_is_still_diffed():
    choose = random.Random(0)
    old, new = ("\n".join(str(choose.randrange(100)) for _ in range(5000)) for _ in range(2))
    assert "@@ -1,5000 +1,5000 @@" in unified_diff(old, new, "f")
