"""The workdir of a run: who may write it, whose it is, and the facts it keeps.

    config.json  run.json          settings; what is done, seconds by stage, executions, peak memory
    tasks/  store/  queue.db       the CPU hosts' side, unless the config names other places
    trajectories/  tokenizer/  checkpoints/  evaluation/  export/
    metrics.jsonl  report/  logs/

Of several processes the first one alone writes there, checkpoints apart, and all read: the workdir is on storage that
they share.
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
"""Packages whose versions stand in run.json."""


def is_remote(workdir: epath.PathLike) -> bool:
    """Tell whether a workdir is in a bucket."""
    return "://" in os.fspath(workdir)


def host_folder(workdir: epath.Path, name: str) -> Path:
    """Return the folder for what other programs write on this host.

    Args:
      workdir: used itself where it is local; for one in a bucket it is a temporary folder.
      name: name of the run.
    """
    return Path(tempfile.gettempdir(), f"mlagent-{name}") if is_remote(workdir) else Path(workdir)


def check_writable(workdir: epath.Path) -> None:
    """Write a probe file and remove it.

    Raises:
      ConfigError: the workdir cannot be written.
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
    """Return the facts so far of the run in a workdir that is new or belongs to this config.

    Args:
      workdir: of the run.
      config: its settings.
      executes: whether the run executes its actions; see `Run.executes`.

    Raises:
      ConfigError: the workdir belongs to another config, or to a run of the other kind.
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
    """Write config.json: from here on the workdir belongs to this config."""
    write_whole(workdir / "config.json", json.dumps(dataclasses.asdict(config), indent=1))
