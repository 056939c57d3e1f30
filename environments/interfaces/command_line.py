"""Command line of the environments: look at tasks, prepare them, take their steps by hand or from a file.

python -m environments list [--paper] [--json]
python -m environments show TASK
python -m environments actions [--profile compact]
python -m environments new TASK --data FILE --target COLUMN
python -m environments build-suite --source NAME --count N --out DIR
python -m environments report DIR
python -m environments check DIR [--all] [--sandbox NAME] [--json]
python -m environments fetch TASK...
python -m environments prepare TASK... [--sandbox NAME]
python -m environments grade TASK SUBMISSION [--json]
python -m environments play TASK
python -m environments run TASK --actions FILE.jsonl --sandbox NAME --json
python -m environments serve TASK
python -m environments self-check [--sandbox NAME] [--json]
python -m environments doctor [--json]
python -m environments clean [--max-gb 4]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from environments import rewards, tasks
from environments.actions import ACTIONS, ASSISTED_ACTIONS, PROFILES, describe_actions, describe_format
from environments.actions.second_model import Endpoint, configured_endpoint
from environments.episode import Episode, make
from environments.files.blobs import StoreError, open_store
from environments.files.snapshots import Snapshots
from environments.interfaces import doctor, factory
from environments.interfaces.json_lines import failure, record, serve
from environments.interfaces.options import (
    add_cache_dir,
    add_episode,
    add_max_steps,
    add_place,
    add_sandbox,
    add_sandbox_name,
    gigabytes,
)
from environments.interfaces.replies import InputError, read_actions, read_replies
from environments.interfaces.terminal import printable
from environments.protocol import Outcome
from environments.registry import RegistryError
from environments.sandbox import open_sandbox, self_check
from environments.sandbox.base import SandboxError
from environments.tasks.check.checker import check
from environments.tasks.task import InvalidSubmissionError, TaskError, TaskSpec

_USER_ERRORS = (InputError, TaskError, SandboxError, StoreError, RegistryError)
"""Errors that the user can fix, reported in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status (1: a task fails its check; 2: an error of the user or host)."""
    options = _parser().parse_args(arguments)
    try:
        with contextlib.ExitStack() as stack:
            if getattr(options, "json", False) or options.command is _serve:
                options.answers = stack.enter_context(_own_standard_output())
            return options.command(options) or 0
    except _USER_ERRORS as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # The reader (`head`) stopped reading.
        sys.stderr.close()
    except KeyboardInterrupt:
        return 130
    return 0


def _list(options: argparse.Namespace) -> None:
    listed = tasks.paper.names() if options.paper else (*tasks.names(), *tasks.folder.installed())
    specs = [tasks.get(name).spec for name in listed]
    if options.json:
        fields = ("name", "kind", "split", "metric", "higher_is_better", "traits", "source")
        _answer(options, [{field: getattr(spec, field) for field in fields} for spec in specs])
        return
    width = max(len(spec.name) for spec in specs)
    for spec in specs:
        problem = spec.description.strip().splitlines()[0]
        row = f"{spec.name:{width}}  {spec.split:8}  {spec.kind:11}  {spec.metric + _better(spec):10}  {problem}"
        print(printable(row))


def _fetch(options: argparse.Namespace) -> None:
    recipes = {name: tasks.get(name) for name in options.tasks}
    for name, recipe in recipes.items():
        if getattr(recipe, "origin", None) is None:
            raise InputError(f"the data of {name} need not be fetched: its task.yaml has no `archive`")
    for recipe in recipes.values():
        print(recipe.origin.fetch(recipe.raw), flush=True)


def _show(options: argparse.Namespace) -> None:
    spec = tasks.get(options.task).spec
    limits = spec.limits
    print(printable(f"{spec.name}: {spec.kind}, {spec.split}\n\n{spec.description.strip()}\n"))
    print(f"metric       {spec.metric}{_better(spec)}, of {spec.submission}, which {spec.entry} writes")
    print(f"read only    {', '.join(spec.read_only)}")
    print(f"an execution {limits.cpu_seconds:g} s of CPU, {limits.wall_seconds:g} s, {limits.memory_mb} MB of memory")
    print(f"data         {spec.source}")
    print(f"\nTake the agent's place: python -m environments play {options.task}")


def _better(spec: TaskSpec) -> str:
    """Return an arrow in the direction of better metrics."""
    return "\N{UPWARDS ARROW}" if spec.higher_is_better else "\N{DOWNWARDS ARROW}"


def _actions(options: argparse.Namespace) -> None:
    offered = ACTIONS if _editor() is None else ACTIONS | ASSISTED_ACTIONS
    print(f"{describe_actions(options.profile, offered)}\nReply format:\n{describe_format(options.profile)}")


def _rewards(options: argparse.Namespace) -> None:
    print(rewards.REWARDS.describe())


def _check(options: argparse.Namespace) -> int:
    if options.all:
        return _check_all(options)
    sandbox = open_sandbox(options.sandbox)
    try:
        findings = check(options.task, sandbox, options.seed)
    finally:
        sandbox.close()
    wrong = sum(not finding.ok for finding in findings)
    if options.json:
        _answer(options, {"task": options.task, "ok": not wrong, "findings": [vars(finding) for finding in findings]})
        return int(wrong > 0)
    for finding in findings:
        remedy = "" if finding.ok or not finding.remedy else f"; {finding.remedy}"
        print(printable(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.message}{remedy}"))
    print(f"{len(findings) - wrong} of {len(findings)} checks passed")
    return int(wrong > 0)


def _check_all(options: argparse.Namespace) -> int:
    failed = 0
    with contextlib.closing(open_sandbox(options.sandbox)) as sandbox:
        for name, findings in factory.check_all(Path(options.task), sandbox, options.seed):
            wrong = [finding for finding in findings if not finding.ok]
            failed += bool(wrong)
            if options.json:
                _answer(options, {"task": name, "ok": not wrong, "findings": [vars(finding) for finding in findings]})
            else:
                problems = "; ".join(f"{finding.check}: {finding.message}" for finding in wrong)
                print(printable(f"{'FAIL' if wrong else 'ok  '}  {name}  {problems}".rstrip()), flush=True)
    return int(failed > 0)


def _prepare(options: argparse.Namespace) -> None:
    for name in options.tasks:
        # Report an unknown name or missing data before anything is built.
        recipe = tasks.get(name)
        if getattr(recipe, "origin", None) is not None:
            recipe.origin.require(recipe.raw)
    sandbox = open_sandbox(options.sandbox)
    try:
        for name in options.tasks:
            prepared = tasks.prepare(name, options.cache_dir / "tasks", options.seed, sandbox)
            print(f"{prepared.key}  m_init {prepared.scale.m_init:.4g}  m_best {prepared.scale.m_best:.4g}")
    finally:
        sandbox.close()


def _grade(options: argparse.Namespace) -> int:
    sandbox = open_sandbox(options.sandbox)
    try:
        task = tasks.prepare(options.task, options.cache_dir / "tasks", options.seed, sandbox)
    finally:
        sandbox.close()
    try:
        submission = options.submission.read_bytes()
    except OSError as error:
        raise InputError(f"{options.submission} cannot be read: {error}") from error
    record = {"task": task.key, "metric": task.spec.metric, "higher_is_better": task.spec.higher_is_better}
    try:
        halves = {"reward": task.grade(submission), "report": task.grade_report(submission)}
        record |= halves | ({"official": task.official(submission)} if task.has_medals else {})
    except InvalidSubmissionError as error:
        record["invalid"] = str(error)
    if options.json:
        _answer(options, record)
    elif "invalid" in record:
        print(printable(f"invalid: {record['invalid']}"))
    else:
        print(
            f"{task.spec.metric}{_better(task.spec)}  "
            f"reward half {halves['reward']:.6g}  report half {halves['report']:.6g}"
        )
        if task.has_medals:
            print("  ".join(f"{name} {value}" for name, value in record["official"].items()))
    return int("invalid" in record)


def _play(options: argparse.Namespace) -> None:
    with _episode(options, options.max_steps) as episode:
        print(printable(episode.reset()[0]))
        print("Type a reply, then a line with a single dot. End of file (Ctrl-D) leaves.")
        for reply in read_replies(sys.stdin):
            observation, _, terminated, truncated, info = episode.step(reply)
            shown = observation or "(no output)"
            print(f"Observation:\n```\n{printable(shown)}\n```\n{_summary(info['outcome'])}")
            if terminated or truncated:
                print("The episode is over.")
                return


def _run(options: argparse.Namespace) -> None:
    actions = read_actions(options.actions)
    with _episode(options, max_steps=len(actions)) as episode:
        for number, action in enumerate(actions, start=1):
            observation, _, terminated, _, info = episode.step(action)
            outcome = info["outcome"]
            if options.json:
                _answer(options, record(outcome))
            else:
                print(f"{number}. {_summary(outcome)}\n{printable(observation)}\n", flush=True)
            if terminated and number < len(actions):
                print(f"the episode ended at action {number} of {len(actions)}", file=sys.stderr)
                return


def _serve(options: argparse.Namespace) -> int:
    """Serve episodes, one after the other, to a client on standard input and output (docs/serve.md)."""
    try:
        episode = _episode(options, options.max_steps)
    except _USER_ERRORS as error:
        _answer(options, failure("start", str(error), "mend that, and start again"))
        raise
    with episode:
        serve(episode, sys.stdin.buffer, options.answers)
    return 0


def _self_check(options: argparse.Namespace) -> int:
    results = []
    with contextlib.closing(open_sandbox(options.sandbox)) as sandbox:
        for result in self_check.run_checks(sandbox):
            results.append(result)
            if options.json:
                _answer(options, vars(result))
            else:
                print(printable(str(result)), flush=True)
    if not options.json:
        print(f"\n{sandbox.name}\n{self_check.table(results)}")
    return int(any(result.failed for result in results))


def _doctor(options: argparse.Namespace) -> int:
    findings = doctor.examine()
    if options.json:
        _answer(options, [dataclasses.asdict(finding) for finding in findings])
    else:
        print(printable(doctor.table(findings)))
    return int(any(finding.state == doctor.GAP for finding in findings))


def _clean(options: argparse.Namespace) -> None:
    """Delete snapshots of finished episodes. The next reset stores starting workspaces again."""
    store = open_store(options.cache_dir / "store")
    done = Snapshots(store).collect((), max_bytes=int(options.max_gb * 1e9))
    print(f"{done.deleted} files deleted, {done.freed_bytes / 1e6:.1f} MB; {done.kept_bytes / 1e6:.1f} MB kept")


@contextlib.contextmanager
def _own_standard_output() -> Iterator[BinaryIO]:
    """Reserve standard output for answers: all else that this process prints (a task's own `prepare.py`, a library)
    goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "wb") as answers, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        try:
            yield answers
        finally:
            os.dup2(answers.fileno(), 1)


def _answer(options: argparse.Namespace, answer: Any) -> None:
    """Write a line of JSON to the stream reserved for answers."""
    options.answers.write(json.dumps(answer).encode() + b"\n")
    options.answers.flush()


def _episode(options: argparse.Namespace, max_steps: int) -> Episode:
    return make(
        options.task,
        sandbox=options.sandbox,
        profile=options.profile,
        reward=options.reward,
        max_steps=max_steps,
        seed=options.seed,
        cache_dir=options.cache_dir,
        cache=not options.no_cache,
        editor=_editor(),
    )


def _editor() -> Endpoint | None:
    """Return the second language model that the environment variables name, if any."""
    try:
        return configured_endpoint()
    except ValueError as error:
        raise InputError(str(error)) from error


def _summary(outcome: Outcome) -> str:
    """Describe an outcome in one line, for a person."""
    metric = (
        "" if outcome.metric_after is None else f", metric {outcome.metric_before:.4g} -> {outcome.metric_after:.4g}"
    )
    return f"{outcome.kind}: reward {outcome.reward:.3f}{metric}, {outcome.seconds:.2f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m environments", description="Machine-learning tasks for agents.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the embedded tasks, and those of installed packages")
    command.add_argument("--json", action="store_true", help="as a JSON array")
    command.add_argument("--paper", action="store_true", help="the ML-Agent paper's instead (docs/paper_tasks.md)")
    command.set_defaults(command=_list)

    command = commands.add_parser("show", help="a task's description")
    command.add_argument("task", metavar="TASK")
    command.set_defaults(command=_show)

    command = commands.add_parser("actions", help="the actions and the reply format")
    command.add_argument("--profile", choices=tuple(PROFILES), default="compact")
    command.set_defaults(command=_actions)

    command = commands.add_parser("rewards", help="the rewards with their parameters, those of plugins included")
    command.set_defaults(command=_rewards)

    command = commands.add_parser("check", help="verify a task: scripts, headroom, hidden labels, broken submissions")
    command.add_argument("task", metavar="DIR", help="folder of a task, or any task's name")
    command.add_argument("--all", action="store_true", help="every task of a suite, or every folder in DIR")
    command.add_argument("--json", action="store_true", help="as a JSON object a task")
    add_sandbox(command)
    command.set_defaults(command=_check)
    factory.add(commands, add_sandbox, _check)

    command = commands.add_parser("fetch", help="download the archives of tasks, into MLAGENT_DATA_DIR")
    command.add_argument("tasks", metavar="TASK", nargs="+")
    command.set_defaults(command=_fetch)

    command = commands.add_parser("prepare", help="build tasks and measure their scripts")
    command.add_argument("tasks", metavar="TASK", nargs="+")
    add_place(command)
    command.set_defaults(command=_prepare)

    command = commands.add_parser("grade", help="score a submission; where there is a leaderboard, its medal")
    command.add_argument("task", metavar="TASK")
    command.add_argument("submission", metavar="FILE", type=Path)
    command.add_argument("--json", action="store_true", help="as a JSON object")
    add_place(command)
    command.set_defaults(command=_grade)

    command = commands.add_parser("play", help="take the agent's place")
    add_episode(command)
    add_max_steps(command)
    command.set_defaults(command=_play)

    command = commands.add_parser("run", help="take the steps of a file")
    command.add_argument("--actions", metavar="FILE.jsonl", required=True, help='lines {"action": "<raw reply text>"}')
    command.add_argument("--json", action="store_true", help="one outcome a line as JSON")
    add_episode(command)
    command.set_defaults(command=_run)

    command = commands.add_parser("serve", help="answer requests, a JSON object a line, on standard input and output")
    add_episode(command)
    add_max_steps(command)
    command.set_defaults(command=_serve)

    command = commands.add_parser("self-check", help="try out what a sandbox holds on this host, in some minutes")
    command.add_argument("--json", action="store_true", help="one check a line as JSON")
    add_sandbox_name(command)
    command.set_defaults(command=_self_check)

    command = commands.add_parser("doctor", help="what this host can do, and the command that mends each gap")
    command.add_argument("--json", action="store_true", help="print findings as JSON")
    command.set_defaults(command=_doctor)
    command = commands.add_parser("clean", help="delete the oldest snapshots of episodes, but none of the last hour")
    add_cache_dir(command)
    command.add_argument("--max-gb", type=gigabytes, default=4.0, metavar="GB", help="what may stay (default 4)")
    command.set_defaults(command=_clean)
    return parser
