"""The grammar of replies, and each action on a small workspace."""

import json

import pytest
from fuzzing import few
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.actions import (
    ACTIONS,
    PROFILES,
    Action,
    ActionError,
    AgentFiles,
    describe_actions,
    describe_format,
    parse,
)

COMPACT, MEDIUM, FULL = (PROFILES[name] for name in ("compact", "medium", "full"))
SCRIPT = """\
import helper

# %% data
train = helper.load()

# %% model
model = LogisticRegression()

# %% submit
helper.submit(model)
"""
CELL = """\
Action: Edit Script (Cell)
Action Input: {"script_name": "train.py", "cell": "model"}
```python
from sklearn.svm import SVC
model = SVC(C=10)
```
"""


@pytest.fixture
def files(tmp_path):
    root, data = tmp_path / "ws", tmp_path / "public"
    root.mkdir()
    data.mkdir()
    (root / "train.py").write_text(SCRIPT)
    (root / "helper.py").write_text("def load(): ...\n")
    (data / "train.csv").write_text("a,b\n1,2\n")
    return AgentFiles(root, data=data, read_only=("helper.py",))


def apply(files, name, block=None, **arguments):
    return Action(name, arguments, block).apply(files)


# -- grammar --


def test_a_compact_reply_with_a_block_parses():
    action = parse(CELL, COMPACT)
    assert action.name == "Edit Script (Cell)"
    assert action.arguments == {"script_name": "train.py", "cell": "model"}
    assert action.block == "from sklearn.svm import SVC\nmodel = SVC(C=10)"


def test_the_last_occurrence_of_a_label_wins():
    first = CELL.replace("train.py", "old.py")
    assert parse(first + "On second thought:\n" + CELL, COMPACT) == parse(CELL, COMPACT)
    assert (
        parse('Action: List Files\nAction: List Files\nAction Input: {"dir_path": "."}', COMPACT).name == "List Files"
    )


def test_an_action_never_takes_the_input_of_an_earlier_one():
    with pytest.raises(ActionError, match="Action Input"):
        parse('Action: List Files\nAction Input: {"dir_path": "."}\nAction: List Files\n', COMPACT)


def test_the_full_profile_wants_all_six_labels_and_compact_lets_them_pass():
    labels = FULL.labels[:-2]
    reply = "".join(f"{label}: x\n" for label in labels) + CELL
    assert parse(reply, FULL) == parse(reply, COMPACT) == parse(CELL, COMPACT)
    for label in labels:
        with pytest.raises(ActionError, match=label):
            parse(reply.replace(f"{label}: x\n", ""), FULL)


def test_the_medium_profile_asks_for_a_thought_and_takes_a_reply_without_one():
    assert describe_format(MEDIUM).startswith("Thought: ")
    assert parse(f"Thought: x\n{CELL}", MEDIUM) == parse(CELL, MEDIUM) == parse(CELL, COMPACT)
    assert set(MEDIUM.listed) <= set(ACTIONS)


def test_what_follows_the_stop_string_is_not_the_agents():
    reply = (
        'Action: List Files\nAction Input: {"dir_path": "."}\nObservation: fine\nAction: Final Answer\nAction Input: {}'
    )
    assert parse(reply, COMPACT).name == "List Files"


def test_labels_inside_of_a_block_are_code():
    action = parse(CELL.replace("model = SVC(C=10)", 'Action: int = 3\nObservation: str = "x"'), COMPACT)
    assert action.block.endswith('Action: int = 3\nObservation: str = "x"')


def test_a_thought_may_hold_an_open_fence():
    assert parse(f"Thought: I would write\n```python\nmodel = 1\n{CELL}", COMPACT) == parse(CELL, COMPACT)


def test_a_longer_fence_holds_shorter_ones():
    reply = CELL.replace("```", "````").replace("model = SVC(C=10)", '"""\n```\nx\n```\n"""')
    assert parse(reply, COMPACT).block.count("```") == 2


@pytest.mark.parametrize("end", ["```\n", "SVC(C=10)\n```\n"])
def test_an_open_block_is_cut_off(end):
    with pytest.raises(ActionError, match="cut off"):
        parse(CELL.removesuffix(end), COMPACT)


def test_json_in_a_fence_is_the_input():
    reply = 'Action: List Files\nAction Input:\n```json\n{"dir_path": "."}\n```'
    assert parse(reply, COMPACT).arguments == {"dir_path": "."}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "no line Action:"),
        ("I would list the files.", "no line Action:"),
        ("Action: List Files", "no line Action Input:"),
        ('Action: Fly\nAction Input: {"to": "x"}', "Invalid action: Fly"),
        ('Action: List File\nAction Input: {"dir_path": "."}', "Invalid action: List File. Did you mean List Files?"),
        ("Action: List Files\nAction Input: .", "not valid JSON"),
        ('Action: List Files\nAction Input: {"dir_path": "."', "not valid JSON"),
        ('Action: List Files\nAction Input: {"dir_path": "."} and more', "not valid JSON"),
        ('Action: List Files\nAction Input: {"dir_path": ".", "dir_path": "x"}', "twice"),
        ('Action: List Files\nAction Input: {"dir_path": NaN}', "no JSON value"),
        ("Action: List Files\nAction Input: " + "[" * 50_000, "not valid JSON"),
        ('Action: List Files\nAction Input: ["."]', "exactly the entries dir_path"),
        ("Action: List Files\nAction Input: {}", "exactly the entries dir_path"),
        ('Action: List Files\nAction Input: {"dir_path": ".", "more": 1}', "exactly the entries dir_path"),
        ('Action: List Files\nAction Input: {"dir_path": 3}', "must be a string"),
        ('Action: List Files\nAction Input: {"dir_path": "\\ud800"}', "not valid Unicode"),
        ('Action: List Files\nAction Input: {"dir_path": "."}\n```\nx\n```', "takes no fenced block"),
        (CELL.split("```")[0], "followed by one fenced block .* found 0: a line ```python, the text, a line ```"),
        ("Action: Fly\nAction Input: {}", "The actions are: List Files, Copy File,"),
        ("Action: Execute Script\nAction Input: train.py", 'It looks like {"script_name": "..."}'),
        (CELL + "```python\nmore = 1\n```\n", "followed by one fenced block"),
        ("\ud800" + CELL, "not valid Unicode"),
        ("x" * 100_001, "at most 100000 characters"),
    ],
)
def test_a_reply_out_of_form_is_refused_with_the_reason(reply, message):
    with pytest.raises(ActionError, match=message):
        parse(reply, COMPACT)


LIST = 'Action: List Files\nAction Input: {"dir_path": "."}'
DRAFT = 'Action: Final Answer\nAction Input: {"final_answer": "done"}\nObservation: that would end it.\n'
FENCE = "```"


@pytest.mark.parametrize(
    ("reply", "repair"),
    [
        (f"<think>\nI could stop here:\n{DRAFT}So no.\n</think>\n\n{LIST}", "thoughts"),
        (f"<think>\nObservation: the last score was low.\n</think>\n{LIST}", "thoughts"),
        (f"<think>{FENCE}python\n{DRAFT}</think>{LIST}", "thoughts"),
        (f"Thought: x\n<think>\n{DRAFT}</think>\n<think></think>\n{LIST}", "thoughts"),
        (f"I could stop here:\n{DRAFT}So no.\n</think>\n\n{LIST}", "thoughts"),
        (f"So I list them.</think>\n\n{LIST}", "thoughts"),
        (LIST.replace("Action", "ACTION"), "labels in another form"),
        (
            LIST.replace("Action:", "**Action:**").replace("Action Input:", "**Action Input**:"),
            "labels in another form",
        ),
        (LIST.replace("Action", "### Action"), "labels in another form"),
        (LIST.replace("List Files", "list files"), "name in another form"),
        (LIST.replace("List Files", "`List Files`"), "name in another form"),
        (LIST.replace('"."', '".",'), "trailing comma"),
        (LIST.replace('"."', '".",\n'), "trailing comma"),
        (LIST.replace("Input: ", f"Input: {FENCE}json\n") + f"\n{FENCE}", "fenced input"),
        (LIST.replace("Input: ", f"Input:\n{FENCE}json\n") + f"\n{FENCE}", "fenced input"),
        (LIST.replace("Input: ", f"Input: {FENCE}json ") + FENCE, "fenced input"),
        (LIST.replace("Input: ", "Input: `") + "`", "fenced input"),
        (f"{FENCE}\n{LIST}\n{FENCE}", "fenced reply"),
        (f"I list them:\n{FENCE}text\n{LIST}\n{FENCE}\nThat shows what is there.", "fenced reply"),
        (f"{FENCE}\n{LIST.replace('Input: ', f'Input: {FENCE}json{chr(10)}')}\n{FENCE}\n{FENCE}\n", "fenced reply"),
    ],
)
def test_a_reply_as_a_language_model_writes_it_is_repaired_where_there_is_no_doubt(reply, repair):
    for text in (reply, reply.replace("\n", "\r\n"), reply.replace("\n", "  \n")):
        action = parse(text, COMPACT)
        assert (action.name, action.arguments, action.block) == ("List Files", {"dir_path": "."}, None)
        assert repair in action.repairs
    assert parse(LIST, COMPACT).repairs == ()


def test_a_reply_in_a_fence_may_hold_a_block():
    for reply in (f"```\n{CELL}```", f"Let me try:\n```text\n{CELL}```\nI hope so."):
        action = parse(reply, COMPACT)
        assert (action, action.repairs) == (parse(CELL, COMPACT), ("fenced reply",))


def test_a_thought_may_begin_a_line_with_the_stop_string():
    assert parse(f"Thought: I see\nObservation: the last score was low.\nSo:\n{CELL}", COMPACT) == parse(CELL, COMPACT)


def test_a_tag_in_a_block_or_an_argument_is_text():
    code = 'prompt = """\n<think>\n</think>\nAction: x\nAction Input: {}\n"""'
    action = Action("Edit Script (Cell)", {"script_name": "a", "cell": "</think>"}, code)
    assert parse(action.render(), COMPACT) == action
    assert parse(action.render(), COMPACT).repairs == ()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (f"<think>\nI could stop here:\n{DRAFT}", "<think> do not end"),
        (f"{FENCE}\n{CELL.split(FENCE)[0]}{FENCE}python\nx = 1", "cut off"),
        (f"{FENCE}\n{LIST}\n{FENCE}\n{FENCE}\nx", "takes no fenced block"),
        (LIST.replace('"."', '".",,'), "not valid JSON"),
        (LIST.replace('"."}', '".,}'), "not valid JSON"),
    ],
)
def test_what_is_in_doubt_is_not_repaired(reply, message):
    with pytest.raises(ActionError, match=message):
        parse(reply, COMPACT)


@pytest.mark.parametrize("value", ["true", "1.5", '"1.5"', "-1", '"x"', "1" * 5000, "null"])
def test_a_line_number_is_an_integer(value):
    template = (
        "Action: Inspect Script Lines\n"
        'Action Input: {"script_name": "a", "start_line_number": %s, "end_line_number": 2}'
    )
    assert parse(template % '"1"', COMPACT).arguments["start_line_number"] == 1
    with pytest.raises(ActionError):
        parse(template % value, COMPACT)


def test_wrong_entries_are_answered_with_the_usage_and_unknown_actions_with_the_list():
    with pytest.raises(ActionError) as raised:
        parse("Action: Copy File\nAction Input: {}", FULL.__class__("x", COMPACT.labels, False, 5000))
    assert raised.value.message.startswith("EnvError: The action input for Copy File needs to be a valid json")
    assert "destination: [a valid file name" in raised.value.message
    with pytest.raises(ActionError) as raised:
        parse("Action: Fly\nAction Input: {}", COMPACT)
    assert raised.value.message.endswith(", ".join(ACTIONS))


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"))


@settings(deadline=None)
@given(block=_TEXT, cell=_TEXT)
def test_a_rendered_action_parses_to_itself(block, cell):
    action = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": cell}, block)
    assert parse(action.render(), COMPACT) == action


@few
@given(st.text())
def test_any_text_is_an_action_or_an_action_error(reply):
    for text in (reply, f"Action: Edit Script (Patch)\nAction Input: {reply}", CELL.replace("SVC", reply)):
        try:
            parse(text, COMPACT)
        except ActionError as error:
            assert "\n" not in error.reason or reply


def test_prompt_text_lists_what_is_shown_and_nothing_else():
    for form in (COMPACT, MEDIUM, FULL):
        text = describe_actions(form)
        for spec in ACTIONS.values():
            is_listed = spec.name in MEDIUM.listed if form is MEDIUM else spec.shown
            assert (f"- {spec.name}" in text) is is_listed
            if is_listed:
                assert all(f'"{argument.name}"' in text for argument in spec.arguments)
        assert [line.split(":")[0] for line in describe_format(form).split("\n")] == list(form.labels)
    assert len(describe_actions(COMPACT)) < 1000


# -- actions --


def test_list_and_inspect_show_workspace_and_data(files):
    assert apply(files, "List Files", dir_path=".").message == "data\nhelper.py\ntrain.py\n"
    assert apply(files, "List Files", dir_path="data").message == "train.csv\n"
    assert apply(files, "Read File", file_name="data/train.csv").message == "a,b\n1,2\n"
    shown = apply(files, "Inspect Script Lines", script_name="train.py", start_line_number=3, end_line_number=4)
    assert shown.message == "Here are the lines (the file ends at line 11):\n\n# %% data\ntrain = helper.load()"


def test_a_whole_script_is_rewritten_and_keeps_its_last_line_end(files):
    done = apply(files, "Edit Script (Whole)", "x = 1\n", script_name="train.py")
    assert done.measured and files.read("train.py") == "x = 1\n"
    assert not apply(files, "Edit Script (Whole)", "x = 1", script_name="train.py").changed
    with pytest.raises(ActionError, match="is empty"):
        apply(files, "Edit Script (Whole)", " \n", script_name="train.py")
    assert apply(files, "Undo Edit Script", script_name="train.py").measured and files.read("train.py") == SCRIPT


def test_inspect_shows_at_most_101_lines(files):
    apply(files, "Inspect Script Lines", script_name="train.py", start_line_number=1, end_line_number=101)
    with pytest.raises(ActionError, match="limited to 100 lines"):
        apply(files, "Inspect Script Lines", script_name="train.py", start_line_number=1, end_line_number=102)


def test_an_edit_answers_a_sentence_and_a_diff_and_undo_takes_back_the_newest(files):
    first = apply(files, "Edit Script (Cell)", "model = 1", script_name="train.py", cell="model")
    assert first.measured
    assert first.message.startswith("The edited file is saved to train.py. Here is the diff")
    assert "-model = LogisticRegression()\n+model = 1" in first.message
    apply(files, "Edit Script (Cell)", "model = 2", script_name="train.py", cell="model")
    undone = apply(files, "Undo Edit Script", script_name="train.py")
    assert "model = 1" in undone.message
    assert files.read("train.py") == SCRIPT.replace("LogisticRegression()", "1")
    apply(files, "Undo Edit Script", script_name="train.py")
    assert files.read("train.py") == SCRIPT
    with pytest.raises(ActionError, match="no change to undo"):
        apply(files, "Undo Edit Script", script_name="train.py")


def test_backups_of_scripts_with_similar_names_are_kept_apart(files):
    apply(files, "Write File", file_name="train.py_0001", content="# %% model\nx = 1\n")
    apply(files, "Edit Script (Cell)", "x = 2", script_name="train.py_0001", cell="model")
    with pytest.raises(ActionError, match="no change to undo"):
        apply(files, "Undo Edit Script", script_name="train.py")


def test_write_append_and_copy(files):
    new = apply(files, "Write File", file_name="sub/notes.txt", content="a")
    assert new.changed
    assert not new.measured
    assert apply(files, "Append File", file_name="sub/notes.txt", content="b").measured
    assert files.read("sub/notes.txt") == "ab"
    assert apply(files, "Copy File", source="data/train.csv", destination="copy.csv").message.startswith(
        "File data/train.csv"
    )
    assert files.read("copy.csv") == "a,b\n1,2\n"
    assert not apply(files, "Copy File", source="train.py", destination="./train.py").changed


def test_the_prompt_examples_match_the_handlers():
    for spec in ACTIONS.values():
        arguments = {argument.name: "1" for argument in spec.arguments}
        reply = f"Action: {spec.name}\nAction Input: {json.dumps(arguments)}\n"
        if spec.block:
            reply += "```python\nx\n```"
        assert set(parse(reply, COMPACT).arguments) == set(arguments)
