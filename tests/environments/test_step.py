"""The way of one action, with a task of one number and a sandbox that is a subprocess."""

import dataclasses
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor

import fakes
import pytest

from environments.files.blobs import blob_id, open_store
from environments.files.snapshots import Snapshots
from environments.protocol import Job, Limits, Outcome, OutcomeKind, State
from environments.sandbox.base import Ending, Execution, SandboxError
from environments.step import Environment
from environments.tasks.task import GraderLimitError, TaskError


@pytest.fixture
def task(tmp_path):
    return fakes.fake_task(tmp_path / "task")


@pytest.fixture
def sandbox():
    return fakes.FakeSandbox()


@pytest.fixture
def environment(tmp_path, monkeypatch, task, sandbox):
    monkeypatch.setattr("environments.step.open_task", lambda root, key: task)
    environment = Environment(tmp_path / "tasks", sandbox, open_store(tmp_path / "store"))
    yield environment
    environment.close()


def reply(name: str, block: str | None = None, **arguments) -> str:
    text = f"Action: {name}\nAction Input: {json.dumps(arguments)}\n"
    return text if block is None else f"{text}```python\n{block}\n```\n"


def edit(block: str, cell: str = "model") -> str:
    return reply("Edit Script (Cell)", block, script_name="train.py", cell=cell)


def job(state: State, action: str, **changes) -> Job:
    return dataclasses.replace(Job(run="test", policy_version=0, state=state, sample=0, action=action), **changes)


def take(environment: Environment, action: str, state: State | None = None, **changes) -> Outcome:
    return environment.take(job(state or environment.initial_state("guess@0"), action, **changes))


def test_an_edit_that_helps_is_scored(environment):
    outcome = take(environment, edit("guess = 3.0"))
    assert outcome.kind is OutcomeKind.SCORED
    assert outcome.metric_before == 2.25
    assert outcome.metric_after == 0.25
    assert outcome.delta == 2.0
    assert outcome.reward > 0.9
    assert outcome.progress == ("parsed", "applied", "started", "submission_written", "valid", "scored")
    assert "+guess = 3.0" in outcome.diff
    assert "guess = 3.0" in outcome.script
    assert environment.store.get(outcome.submission) == b"3.0"
    assert outcome.action_name == "Edit Script (Cell)"
    assert outcome.action_input == {"script_name": "train.py", "cell": "model"}
    assert outcome.sandbox == "fake"
    assert not outcome.cached
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome


def test_an_edit_that_hurts_is_worth_less_than_one_that_helps(environment):
    worse, better = take(environment, edit("guess = -1.0")), take(environment, edit("guess = 3.0"))
    assert worse.delta < 0 < better.delta
    assert worse.reward < 0.5 < better.reward


def test_a_trajectory_is_scored_against_the_metric_so_far(environment):
    state = environment.initial_state("guess@0")
    first = job(state, edit("guess = 2.0"))
    outcome = environment.take(first)
    state = outcome.next_state(first)
    assert state.metric == 1.25
    second = take(environment, edit("guess = 3.0"), state)
    assert second.metric_before == 1.25
    assert second.delta == 1.0


def test_the_hidden_metric_is_not_in_the_observation(environment):
    for profile in ("compact", "full"):
        action = edit("guess = 2.0")
        if profile == "full":
            labels = ("Reflection", "Research Plan and Status", "Fact Check", "Thought")
            action = "".join(f"{label}: x\n" for label in labels) + action
        outcome = take(environment, action, profile=profile)
        assert outcome.kind is OutcomeKind.SCORED
        assert "loss on the training data 1.0" in outcome.observation
        assert str(outcome.metric_after) not in outcome.observation


def test_the_full_profile_answers_with_diff_and_output(environment):
    head = "Reflection: a\nResearch Plan and Status: b\nFact Check: c\nThought: d\n"
    outcome = take(environment, head + edit("guess = 2.0"), profile="full")
    assert outcome.observation.startswith("The edited file is saved to train.py. Here is the diff")
    assert "-guess = 1.0\n+guess = 2.0" in outcome.observation
    assert "The script has been executed. Here is the output:\nloss on the training data 1.0" in outcome.observation


def test_the_full_profile_refuses_a_reply_without_its_labels(environment):
    outcome = take(environment, edit("guess = 2.0"), profile="full")
    assert outcome.kind is OutcomeKind.INVALID_ACTION
    assert "Please provide a valid response with all entries: Reflection" in outcome.observation


def test_a_reply_cut_at_the_token_limit_is_invalid_and_not_executed(environment, sandbox):
    outcome = take(environment, edit("guess = 3.0"), truncated=True)
    assert outcome.kind is OutcomeKind.INVALID_ACTION
    assert sandbox.runs == []
    assert outcome.progress == ()


@pytest.mark.parametrize(
    "action",
    [
        "",
        "Action: Fly\nAction Input: {}",
        edit("guess = 3.0", cell="nothing"),
        edit("guess = 3.0").removesuffix("```\n"),
        reply("Edit Script (Lines)", "x", script_name="train.py", start_line_number=90, end_line_number=91),
        reply("Undo Edit Script", script_name="train.py"),
        reply("Execute Script", script_name="missing.py"),
        reply("Write File", file_name="helper.py", content="x"),
    ],
)
def test_an_action_that_does_not_apply_is_invalid_and_changes_nothing(environment, sandbox, action):
    state = environment.initial_state("guess@0")
    outcome = take(environment, action, state)
    assert outcome.kind is OutcomeKind.INVALID_ACTION
    assert outcome.reward == 0.0
    assert outcome.snapshot == state.snapshot
    assert outcome.script == state.script
    assert outcome.metric_after is None
    assert sandbox.runs == []
    assert outcome.observation


def test_a_syntax_error_is_a_script_error_with_the_last_line_shown(environment):
    outcome = take(environment, edit("guess = = 3"))
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    assert outcome.observation == "SyntaxError: invalid syntax"
    assert outcome.metric_after is None
    assert "guess = = 3" in outcome.script
    assert outcome.reason == "exit code 1"
    assert outcome.progress == ("parsed", "applied", "started")


def test_a_script_without_submission_is_a_script_error(environment):
    outcome = take(environment, edit("print('done')", cell="submit"))
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    assert outcome.observation == "EnvError: the script ended without writing submission.csv."


def test_an_invalid_submission_is_a_script_error_that_says_why(environment):
    outcome = take(environment, edit("guess = 'three'"), profile="compact")
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    outcome = take(environment, edit("open('submission.csv', 'w').write('x')", cell="submit"))
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    assert outcome.observation == "EnvError: invalid submission: no number"
    assert "submission_written" in outcome.progress
    assert "valid" not in outcome.progress


@pytest.mark.parametrize("grade", [lambda data: float("nan"), lambda data: float("inf")], ids=["nan", "inf"])
def test_a_submission_without_a_finite_metric_is_never_scored(environment, task, grade):
    task.grade = grade
    outcome = take(environment, edit("guess = 3.0"))
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR


@pytest.mark.parametrize("error", [ImportError, MemoryError, zipfile.BadZipFile, TaskError, IndexError])
def test_a_grader_that_breaks_is_ours_told_to_the_operator_and_never_cached(environment, task, sandbox, caplog, error):
    grade = task.grade

    def broken(data):
        raise error("the label is 3.25")

    task.grade = broken
    outcome = take(environment, edit("guess = 3.0"))
    assert outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR and outcome.reward is None
    assert error.__name__ in outcome.reason and "3.25" not in outcome.reason + outcome.observation
    assert "Traceback" in caplog.text and "the label is 3.25" in caplog.text
    task.grade = grade
    outcome = take(environment, edit("guess = 3.0"))
    assert outcome.kind is OutcomeKind.SCORED and not outcome.cached and len(sandbox.runs) == 2


def test_interrupting_ends_sandbox_and_graders(environment, task, sandbox, monkeypatch):
    environment.initial_state("guess@0")
    closed = []
    monkeypatch.setattr(type(task), "close", lambda task: closed.append(task))
    monkeypatch.setattr(sandbox, "close", lambda: closed.append(sandbox))
    environment.interrupt()
    assert closed == [sandbox, task]


def test_a_submission_that_alone_exceeds_the_graders_limit_is_the_scripts_and_never_cached(environment, task, sandbox):
    def slow(data):
        raise GraderLimitError("the grader cannot score it (time limit)")

    task.grade = slow
    for run in (1, 2):
        assert take(environment, edit("guess = 3.0")).kind is OutcomeKind.SCRIPT_ERROR
        assert len(sandbox.runs) == run


@pytest.mark.parametrize(
    "action",
    [
        edit("guess = 1.0"),
        reply("List Files", dir_path="."),
        reply("Inspect Script Lines", script_name="train.py", start_line_number=1, end_line_number=3),
        reply("Final Answer", final_answer="done"),
        reply("Read File", file_name="data/train.csv"),
        reply("Write File", file_name="train.py", content=fakes.TRAIN),
    ],
)
def test_a_step_that_changes_nothing_is_no_edit(environment, sandbox, action):
    state = environment.initial_state("guess@0")
    outcome = take(environment, action, state)
    assert outcome.kind is OutcomeKind.NO_EDIT
    assert outcome.reward == 0.1
    assert outcome.snapshot == state.snapshot
    assert outcome.metric_after is None
    assert sandbox.runs == []
    assert outcome.final == ("Final Answer" in action)


@pytest.mark.parametrize("cell", ["guess = 1.0  # a comment", "guess = 1.0\nunused = 2", "guess = 2.0 / 2"])
def test_an_edit_that_changes_no_result_is_worth_as_much_as_a_look(environment, cell):
    outcome = take(environment, edit(cell))
    assert outcome.kind is OutcomeKind.SCORED
    assert outcome.reward == take(environment, reply("List Files", dir_path=".")).reward


def test_an_edit_of_a_file_that_nothing_reads_is_worth_as_much_as_a_look(environment):
    write = job(environment.initial_state("guess@0"), reply("Write File", file_name="notes.txt", content="x"))
    first = environment.take(write)
    second = take(environment, reply("Append File", file_name="notes.txt", content="y"), first.next_state(write))
    look = take(environment, reply("List Files", dir_path="."))
    assert first.reward == second.reward == look.reward


def test_executing_an_unchanged_script_shows_its_output_and_is_no_edit(environment, sandbox):
    outcome = take(environment, reply("Execute Script", script_name="train.py"))
    assert outcome.kind is OutcomeKind.NO_EDIT
    assert outcome.observation == "loss on the training data 2.0"
    assert outcome.metric_after is None
    assert sandbox.runs == ["train.py"]


def test_executing_a_script_that_fails_is_a_script_error(environment):
    state = environment.initial_state("guess@0")
    first = job(state, reply("Write File", file_name="other.py", content="raise ValueError('no')"))
    outcome = environment.take(first)
    assert outcome.kind is OutcomeKind.NO_EDIT
    outcome = take(environment, reply("Execute Script", script_name="other.py"), outcome.next_state(first))
    assert outcome.kind is OutcomeKind.SCRIPT_ERROR
    assert outcome.observation == "ValueError: no"


def test_undo_restores_the_script_and_is_scored_as_an_edit(environment):
    state = environment.initial_state("guess@0")
    first = job(state, edit("guess = -5.0"))
    state = environment.take(first).next_state(first)
    outcome = take(environment, reply("Undo Edit Script", script_name="train.py"), state)
    assert outcome.kind is OutcomeKind.SCORED
    assert outcome.script == fakes.TRAIN
    assert outcome.metric_after == 2.25
    again = job(state, reply("Undo Edit Script", script_name="train.py"))
    state = outcome.next_state(again)
    assert take(environment, again.action, state).kind is OutcomeKind.INVALID_ACTION


def test_copying_another_script_over_the_entry_script_is_scored(environment):
    state = environment.initial_state("guess@0")
    first = job(state, reply("Write File", file_name="new.py", content=fakes.TRAIN.replace("1.0", "3.0")))
    outcome = environment.take(first)
    assert outcome.kind is OutcomeKind.NO_EDIT
    outcome = take(environment, reply("Copy File", source="new.py", destination="train.py"), outcome.next_state(first))
    assert outcome.kind is OutcomeKind.SCORED
    assert outcome.metric_after == 0.25


@pytest.mark.parametrize(
    ("ending", "kind", "word"),
    [
        (Ending.TIME_LIMIT, OutcomeKind.TIME_LIMIT, "CPU time"),
        (Ending.MEMORY_LIMIT, OutcomeKind.MEMORY_LIMIT, "memory"),
        (Ending.OTHER_LIMIT, OutcomeKind.SCRIPT_ERROR, "written"),
    ],
)
def test_limits_are_typed_told_to_the_agent_and_never_cached(environment, sandbox, ending, kind, word):
    for _ in range(2):
        sandbox.endings.append(Execution(ending, None, "so far", "", 9.0, 8.0, "host detail"))
        outcome = take(environment, edit("guess = 3.0"))
        assert outcome.kind is kind
        assert word in outcome.observation
        assert "host detail" not in outcome.observation
        assert outcome.seconds == 9.0
        assert outcome.cpu_seconds == 8.0
        assert not outcome.cached
        assert outcome.reward == 0.05


@pytest.mark.parametrize("failure", [SandboxError("engine died at /host/path"), OSError(28, "No space left on device")])
def test_a_failure_of_ours_has_no_reward_and_is_not_cached(environment, sandbox, failure):
    state = environment.initial_state("guess@0")
    sandbox.failures.append(failure)
    outcome = take(environment, edit("guess = 3.0"), state)
    assert outcome.kind is OutcomeKind.INFRASTRUCTURE_ERROR
    assert outcome.reward is None
    assert outcome.snapshot == state.snapshot
    assert outcome.observation == ""
    assert str(failure) in outcome.reason
    assert take(environment, edit("guess = 3.0"), state).kind is OutcomeKind.SCORED


def test_a_missing_snapshot_is_a_failure_of_ours(environment):
    state = dataclasses.replace(environment.initial_state("guess@0"), snapshot="0" * 64)
    assert take(environment, edit("guess = 3.0"), state).kind is OutcomeKind.INFRASTRUCTURE_ERROR


@pytest.mark.parametrize("field", ["reward", "profile"])
def test_a_job_with_an_unknown_name_is_refused_before_anything_runs(environment, sandbox, field):
    with pytest.raises(ValueError, match="choose one of"):
        take(environment, edit("guess = 3.0"), **{field: "nonsense"})
    assert sandbox.runs == []


def test_the_same_execution_is_made_once(environment, sandbox):
    state = environment.initial_state("guess@0")
    first = take(environment, edit("guess = 3.0"), state)
    again = take(environment, edit("guess = 3.0"), state)
    patch = "<<<<<<< SEARCH\nguess = 1.0\n=======\nguess = 3.0\n>>>>>>> REPLACE"
    other_action = take(environment, reply("Edit Script (Patch)", patch, script_name="train.py"), state)
    assert len(sandbox.runs) == 1
    assert again.cached
    assert dataclasses.replace(again, cached=False) == first
    assert other_action.cached
    assert other_action.metric_after == first.metric_after


@pytest.mark.parametrize("change", [{"seed": 1}, {"limits": Limits(cpu_seconds=3.0)}])
def test_another_seed_or_limit_is_another_execution(environment, sandbox, change):
    take(environment, edit("guess = 3.0"))
    assert not take(environment, edit("guess = 3.0"), **change).cached
    assert len(sandbox.runs) == 2


def test_the_cache_outlives_the_process_and_can_be_left_out(environment, sandbox, tmp_path):
    take(environment, edit("guess = 3.0"))
    for cache, cached in ((True, True), (False, False)):
        other = Environment(tmp_path / "tasks", sandbox, environment.store, cache=cache)
        assert take(other, edit("guess = 3.0")).cached is cached
        other.close()
    assert (tmp_path / "tasks" / "executions.sqlite").stat().st_mode & 0o077 == 0


def test_a_known_execution_whose_blobs_are_gone_is_made_again(environment, sandbox):
    state = environment.initial_state("guess@0")
    first = take(environment, edit("guess = 3.0"), state)
    snapshots = Snapshots(environment.store)
    for runs, blob in enumerate((first.snapshot, first.submission), start=2):
        environment.store.delete(blob)
        again = take(environment, edit("guess = 3.0"), state)
        assert not again.cached
        assert len(sandbox.runs) == runs
        assert snapshots.is_whole(again.snapshot, [again.submission])
    assert take(environment, edit("guess = 3.0"), state).cached


def test_steps_of_several_threads_do_not_touch_each_other(environment):
    state = environment.initial_state("guess@0")
    guesses = [2.0 + number / 8 for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda guess: take(environment, edit(f"guess = {guess}"), state), guesses))
    assert [outcome.metric_after for outcome in outcomes] == [abs(guess - fakes.LABEL) for guess in guesses]


def test_no_temporary_files_stay(environment, sandbox, tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    environment = Environment(tmp_path / "tasks", sandbox, environment.store, scratch=folder)
    take(environment, edit("import os\nos.mkdir('closed')\nos.mkdir('closed/inner')\nos.chmod('closed', 0)\nguess = 2"))
    take(environment, edit("raise SystemExit(3)"))
    sandbox.failures.append(SandboxError("died"))
    take(environment, edit("guess = 3.5"))
    environment.close()
    assert os.listdir(folder) == []


def test_a_known_execution_whose_files_are_gone_is_made_again(environment, sandbox):
    first = take(environment, edit("guess = 3.0\nopen('new.txt', 'w').write('new')"))
    assert take(environment, edit("guess = 3.0\nopen('new.txt', 'w').write('new')")).cached
    for identity in (blob_id(b"new"), first.submission, first.snapshot):
        environment.store.delete(identity)
        again = take(environment, edit("guess = 3.0\nopen('new.txt', 'w').write('new')"))
        assert dataclasses.replace(again, seconds=0, cpu_seconds=0) == dataclasses.replace(
            first, seconds=0, cpu_seconds=0
        )
        assert environment.store.has(identity)
    assert len(sandbox.runs) == 4


def test_what_was_repaired_in_a_reply_is_told_to_a_person(environment):
    plain = take(environment, edit("guess = 3.0"))
    thought = f"<think>\n{reply('Final Answer', final_answer='done')}</think>\n{edit('guess = 3.0')}"
    repaired = take(environment, thought.replace("Action:", "**Action:**"))
    assert (plain.repairs, repaired.repairs) == ((), ("thoughts", "labels in another form"))
    assert repaired.metric_after == plain.metric_after
    looked = take(environment, reply("list files", dir_path="."))
    assert (looked.kind, looked.repairs) == (OutcomeKind.NO_EDIT, ("name in another form",))
    patch = "<<<<<<< SEARCH\nguess = 1.0  \n=======\nguess = 3.0\n>>>>>>> REPLACE"
    spaced = take(environment, reply("edit script (patch)", patch, script_name="train.py"))
    assert spaced.repairs == ("name in another form", "spaces in SEARCH")
    failed = take(environment, thought.replace("guess = 3.0", "raise ValueError"))
    assert (failed.kind, failed.repairs) == (OutcomeKind.SCRIPT_ERROR, ("thoughts",))
    assert Outcome.from_dict(spaced.to_dict()) == spaced
