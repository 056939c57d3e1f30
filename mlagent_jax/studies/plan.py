"""What a study compares, and the runs that this takes.

For every seed one run collects expert steps and makes the SFT policy; every arm is a run of its own that starts from
that policy, on the same tasks and states, and changes only the settings that it is about. The arm `default` changes
nothing and is shared by all studies of a workdir. An arm about the expert or SFT has a start of its own. In a study of
time alone executions sleep: its arms start from random weights.
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
    """Executions that take time and nothing else (`mlagent_jax.studies.sleeping`): what comes of them is made up."""

    seconds: float
    """Of an execution."""
    workers: int
    """Executions at once."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant."""

    name: str
    """Of its folder and its column."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """What its rl and evaluate differ in."""
    start: Settings = dataclasses.field(default_factory=dict)
    """What collect and sft of its own start differ in; empty: it begins with the shared SFT policy."""
    points: tuple[int, ...] = ()
    """Iterations after which it is evaluated, its last one among them, for a curve; empty: in the end alone."""
    sleep: Sleep | None = None
    """Its executions sleep, and nothing is evaluated; None: they are real."""


DEFAULT = Arm("default", points=(12, 24))
"""Its last point is `rl.iterations` of configs/studies/settings.py."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One question, answered by the default arm beside others."""

    name: str
    question: str
    arms: tuple[Arm, ...]
    """Besides the default one."""
    diversity: bool = False
    """Whether the variety of sampled actions is among the figures."""
    default: Arm = DEFAULT

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len({*names, self.default.name, "sft"}) < len(names) + 2:
            raise ConfigError(f"study {self.name!r} has the arms {names}: each needs a name of its own")
        if len({arm.sleep is None for arm in self.all_arms}) > 1:
            raise ConfigError(f"study {self.name!r} has arms that execute and arms that sleep: they compare in nothing")
        for arm in self.all_arms:
            for field in (*arm.settings, *arm.start):
                check_field(field)

    @property
    def is_timed(self) -> bool:
        """Whether it is about time alone."""
        return self.default.sleep is not None

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        return (self.default, *self.arms)

    def scaled(self, iterations: int) -> Self:
        """The study with so many iterations of the default arm, and in proportion of those that are evaluated on the
        way."""

        def scale(arm: Arm) -> Arm:
            whole = self.default.points[-1]
            points = dict.fromkeys(max(1, round(point * iterations / whole)) for point in arm.points)
            return dataclasses.replace(arm, points=tuple(points))

        return dataclasses.replace(self, arms=tuple(map(scale, self.arms)), default=scale(self.default))


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of `mlagent_jax.train`, or of the program whose executions sleep."""

    workdir: Path
    stages: tuple[str, ...]
    settings: Settings
    sleep: Sleep | None = None

    @property
    def program(self) -> str:
        """The module that runs it."""
        return "mlagent_jax.studies.sleeping" if self.sleep else "mlagent_jax.train"

    @property
    def flags(self) -> list[str]:
        """Arguments of the program, the config file apart."""
        values = {"stages": self.stages, **self.settings}
        own = dataclasses.asdict(self.sleep) if self.sleep else {}
        return [
            f"--workdir={self.workdir}",
            *(f"--{name}={value}" for name, value in own.items()),
            *(f"--config.{name}={_flag(value)}" for name, value in values.items()),
        ]

    @property
    def info(self) -> dict[str, Any]:
        """Its `run.json` so far."""
        path = self.workdir / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @property
    def is_done(self) -> bool:
        return set(self.stages) <= set(self.info.get("done", ()))


def _flag(value: Any) -> str:
    return ",".join(value) if isinstance(value, (tuple, list)) else str(value)


def start_run(root: Path, seed: int, arm: Arm, common: Settings) -> PlannedRun:
    """The run that makes the SFT policy which an arm begins with."""
    folder = root / f"seed{seed}" / (f"start-{arm.name}" if arm.start else "start")
    settings = {"seed": seed, "evaluate.policies": ("sft",), "export.policy": "sft", **common, **arm.start}
    return PlannedRun(folder, ("collect", "sft", "evaluate", "export"), settings)


def arm_run(root: Path, seed: int, arm: Arm, common: Settings) -> PlannedRun:
    """The run of an arm itself."""
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
    """All runs in order, each once: a seed after the other, the shared ones first.

    Raises:
      ConfigError: two studies mean different things by one arm's name.
    """
    known: dict[str, Arm] = {}
    for study in studies:
        for arm in study.all_arms:
            if known.setdefault(arm.name, arm) != arm:
                raise ConfigError(
                    f"study {study.name!r} has another arm {arm.name!r} than a study before it: rename it"
                )
    for seed in seeds:
        planned = []
        for arm in known.values():
            planned += [] if arm.sleep else [start_run(root, seed, arm, common)]
            planned.append(arm_run(root, seed, arm, common))
        yield from {run.workdir: run for run in planned}.values()


def load_study(path: Path) -> Study:
    """The study that a file's `get_study()` returns.

    Raises:
      ConfigError: no such file, or none of a study.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file: name a study, for example configs/studies/exploration.py")
    spec = importlib.util.spec_from_file_location(f"study_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise ConfigError(f"{path} has no get_study(): is it the config of a run?")
    return module.get_study()
