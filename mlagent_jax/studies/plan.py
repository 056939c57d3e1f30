"""Arms of a study, and the runs that they need.

For every seed one run collects expert steps and trains the SFT policy. Every arm is a run of its own that starts from
that policy, on the same tasks and states, and changes only the settings under study. The arm `default` changes nothing
and is shared by all studies of a workdir. An arm about the expert or SFT has its own start. In a study of time only,
executions sleep and arms start from random weights.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import check_field

Settings = Mapping[str, Any]
"""Config fields by their dotted name, for example {"rl.value_clip": 0.1}."""


@dataclasses.dataclass(frozen=True)
class Sleep:
    """Executions that only take time (`mlagent_jax.studies.sleeping`); their outcomes are simulated."""

    seconds: float
    """Seconds per execution."""
    workers: int
    """Concurrent executions."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant."""

    name: str
    """Name of its folder and column."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Changed settings of rl and evaluate."""
    start: Settings = dataclasses.field(default_factory=dict)
    """Changed settings of its own collect and sft; empty: it starts from the shared SFT policy."""
    points: tuple[int, ...] = ()
    """Iterations with an evaluation, including the last, for a curve; empty: evaluate only at the end."""
    sleep: Sleep | None = None
    """Sleeping executions, without an evaluation; None: executions are real."""


DEFAULT = Arm("default", points=(12, 24))
"""Arm shared by all studies; its last point is `rl.iterations` of configs/studies/settings.py."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One question, answered by comparing arms with the default arm."""

    name: str
    question: str
    arms: tuple[Arm, ...]
    """Arms besides the default one."""
    diversity: bool = False
    """Whether the diversity of sampled actions is reported."""
    default: Arm = DEFAULT

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len({*names, self.default.name, "sft"}) < len(names) + 2:
            raise ConfigError(f"study {self.name!r} has the arms {names}: each needs a unique name")
        if len({arm.sleep is None for arm in self.all_arms}) > 1:
            raise ConfigError(f"study {self.name!r} has arms that execute and arms that sleep: they cannot be compared")
        for arm in self.all_arms:
            for field in (*arm.settings, *arm.start):
                check_field(field)

    @property
    def is_timed(self) -> bool:
        """Return whether the study is about time only."""
        return self.default.sleep is not None

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        return (self.default, *self.arms)

    def scaled(self, iterations: int) -> Self:
        """Return the study with `iterations` of the default arm, and all evaluation points in proportion."""

        def scale(arm: Arm) -> Arm:
            whole = self.default.points[-1]
            points = dict.fromkeys(max(1, round(point * iterations / whole)) for point in arm.points)
            return dataclasses.replace(arm, points=tuple(points))

        return dataclasses.replace(self, arms=tuple(map(scale, self.arms)), default=scale(self.default))


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of `mlagent_jax.train`, or of the program with sleeping executions."""

    workdir: Path
    stages: tuple[str, ...]
    settings: Settings
    sleep: Sleep | None = None

    @property
    def program(self) -> str:
        """Return the module that runs it."""
        return "mlagent_jax.studies.sleeping" if self.sleep else "mlagent_jax.train"

    @property
    def flags(self) -> list[str]:
        """Return the program's arguments, without the config file."""
        values = {"stages": self.stages, **self.settings}
        own = dataclasses.asdict(self.sleep) if self.sleep else {}
        return [
            f"--workdir={self.workdir}",
            *(f"--{name}={value}" for name, value in own.items()),
            *(f"--config.{name}={_flag(value)}" for name, value in values.items()),
        ]

    @property
    def info(self) -> dict[str, Any]:
        """Return the current content of its `run.json`."""
        path = self.workdir / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def is_done(self) -> bool:
        return set(self.stages) <= set(self.info.get("done", ()))


def _flag(value: Any) -> str:
    return ",".join(value) if isinstance(value, (tuple, list)) else str(value)


def start_run(root: Path, seed: int, arm: Arm, common: Settings) -> PlannedRun:
    """Return the run that makes an arm's initial SFT policy."""
    folder = root / f"seed{seed}" / (f"start-{arm.name}" if arm.start else "start")
    settings = {"seed": seed, "evaluate.policies": ("sft",), "export.policy": "sft", **common, **arm.start}
    return PlannedRun(folder, ("collect", "sft", "evaluate", "export"), settings)


def arm_run(root: Path, seed: int, arm: Arm, common: Settings) -> PlannedRun:
    """Return the run of an arm itself."""
    if arm.sleep:
        settings = {"seed": seed, **common, **arm.settings, "rl.iterations": arm.points[-1]}
        return PlannedRun(root / f"seed{seed}" / arm.name, ("rl",), settings, arm.sleep)
    start = start_run(root, seed, arm, common).workdir
    settings = {
        "seed": seed,
        "policy.checkpoint": start / "export",
        "pool.trajectories": start,
        "tasks.folder": start / "tasks",
        "workers.store": start / "store",
        "evaluate.policies": (*(f"rl@{point}" for point in arm.points[:-1]), "rl"),
        "rl.keep_every": math.gcd(*arm.points),
        **common,
        **arm.settings,
    }
    if arm.points:
        settings["rl.iterations"] = arm.points[-1]
    return PlannedRun(root / f"seed{seed}" / arm.name, ("rl", "evaluate"), settings)


def runs(studies: Sequence[Study], root: Path, seeds: Sequence[int], common: Settings) -> Iterator[PlannedRun]:
    """Yield all runs in order, each once: seed by seed, the shared ones first.

    Raises:
      ConfigError: Two studies define the same arm name differently.
    """
    known: dict[str, Arm] = {}
    for study in studies:
        for arm in study.all_arms:
            if known.setdefault(arm.name, arm) != arm:
                raise ConfigError(f"study {study.name!r} redefines the arm {arm.name!r} of an earlier study: rename it")
    for seed in seeds:
        planned = []
        for arm in known.values():
            planned += [] if arm.sleep else [start_run(root, seed, arm, common)]
            planned.append(arm_run(root, seed, arm, common))
        yield from {run.workdir: run for run in planned}.values()


def load_study(path: Path) -> Study:
    """Return the study from a file's `get_study()`.

    Raises:
      ConfigError: The file does not exist or defines no study.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file: name a study, for example configs/studies/exploration.py")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise ConfigError(f"{path} has no get_study(): is it the config of a run?")
    return module.get_study()
