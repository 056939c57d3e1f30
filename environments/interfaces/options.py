"""Options that several commands of `python -m environments` have, and the checks of their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from environments import rewards
from environments.actions import PROFILES
from environments.episode import default_cache_dir
from environments.sandbox import SANDBOXES


def add_cache_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        default=default_cache_dir(),
        help="prepared tasks, snapshots and executions (default %(default)s)",
    )


def gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return value


def add_sandbox_name(command: argparse.ArgumentParser) -> None:
    names = ("auto", *SANDBOXES.names())
    command.add_argument("--sandbox", choices=names, default="bubblewrap", help="where scripts run")


def add_sandbox(command: argparse.ArgumentParser) -> None:
    add_sandbox_name(command)
    command.add_argument("--seed", type=_seed, default=0, help="of the data; the executions' follows (default 0)")


def add_place(command: argparse.ArgumentParser) -> None:
    add_sandbox(command)
    add_cache_dir(command)


def add_max_steps(command: argparse.ArgumentParser) -> None:
    command.add_argument("--max-steps", type=_positive, default=15, help="of an episode (default %(default)s)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def _reward(text: str) -> str:
    try:
        rewards.REWARDS.choose(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_episode(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", metavar="TASK")
    add_place(command)
    command.add_argument("--profile", choices=tuple(PROFILES), default="compact", help="of the reply format")
    command.add_argument("--reward", type=_reward, default="improvement", help="`rewards` lists them with parameters")
    command.add_argument("--no-cache", action="store_true", help="run again what has run before")
