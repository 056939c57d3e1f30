"""Workdir of a run: write checks, ownership by a config, and stored facts.

    config.json  run.json          settings; completed stages, seconds by stage, executions, peak memory
    tasks/  store/  queue.db       for the CPU hosts, unless the config names other places
    trajectories/  tokenizer/  checkpoints/  evaluation/  export/
    metrics.jsonl  timeline.jsonl  report/  logs/
    xla/  profile/                 compiled programs; traces that `config.profile` asks for

With several processes the workdir is on shared storage: the first process writes everything but checkpoints, and all
processes read.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import tempfile
import uuid
from pathlib import Path
from typing import Any

from etils import epath

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.files import write_whole
from mlagent_jax.settings.schema import Config, differences

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "sentencepiece", "scikit-learn", "numpy")
"""Packages whose versions are recorded in run.json."""


def is_remote(workdir: epath.PathLike) -> bool:
    """Return whether a workdir is in a bucket."""
    return "://" in os.fspath(workdir)


def host_folder(workdir: epath.Path, name: str) -> Path:
    """Return the folder for files of other programs on this host.

    Args:
      workdir: Workdir of the run, returned itself if local; for a bucket the result is a temporary folder.
      name: Name of the run.
    """
    return Path(tempfile.gettempdir(), f"mlagent-{name}") if is_remote(workdir) else Path(workdir)


def check_writable(workdir: epath.Path) -> None:
    """Write a probe file and remove it.

    Raises:
      ConfigError: The workdir cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"workdir {workdir} cannot be written ({error}): choose another with --workdir=DIR"
        ) from error


def read_facts(workdir: epath.Path, config: Config, executes: bool) -> dict[str, Any]:
    """Return the stored facts of the run in a workdir that is new or belongs to this config.

    Args:
      workdir: Workdir of the run.
      config: Its settings.
      executes: Whether the run executes its actions; see `Run.executes`.

    Raises:
      ConfigError: The workdir belongs to another config, or to a run of the other kind.
    """
    facts_path, stored = workdir / "run.json", workdir / "config.json"
    facts = json.loads(facts_path.read_text()) if facts_path.exists() else {}
    if stored.exists() and facts.get("executes", True) != executes:
        kinds = {True: "executes its actions", False: "only sleeps in their place (mlagent_jax.studies.sleeping)"}
        raise ConfigError(
            f"workdir {workdir} belongs to a run that {kinds[not executes]}, and this one {kinds[executes]}: choose "
            "another --workdir"
        )
    if stored.exists():
        differ = differences(json.loads(stored.read_text()), config)
        if differ:
            raise ConfigError(
                f"workdir {workdir} belongs to a run of another config; these fields differ: {'; '.join(differ)}. "
                "Choose another --workdir, or set the fields back"
            )
    facts["executes"] = executes
    facts.setdefault("name", f"{workdir.name}-{uuid.uuid4().hex[:8]}")
    facts.setdefault("done", [])
    facts.setdefault("seconds", {})
    facts.setdefault("executions", 0)
    facts["seed"] = config.seed
    facts["config"] = dataclasses.asdict(config)
    facts["versions"] = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in VERSIONS
    }
    return facts


def write_facts(workdir: epath.Path, facts: dict[str, Any]) -> None:
    """Write run.json."""
    write_whole(workdir / "run.json", json.dumps(facts, indent=1))


def write_config(workdir: epath.Path, config: Config) -> None:
    """Write config.json: from now on the workdir belongs to this config."""
    write_whole(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=1))
