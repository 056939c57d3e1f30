"""Config file that holds the stored settings of a run: `--config=RUN/config.json` is read through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import check_field, default_config


def get_config(path: str) -> ConfigDict:
    """Return the settings stored in `path`; a field that is younger than the run has its default.

    Raises:
      ConfigError: The file holds no settings of a run.
    """
    try:
        stored = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config is {path!r}, which is not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"--config is {path!r}, which holds no settings: name the config.json of a workdir")
    config = default_config()
    _take(config, stored, "")
    return config


def _take(config: ConfigDict, stored: dict[str, Any], above: str) -> None:
    for name, value in stored.items():
        path = f"{above}.{name}" if above else name
        check_field(path)
        if isinstance(value, dict) and isinstance(config[name], ConfigDict):
            _take(config[name], value, path)
        else:
            config[name] = tuple(value) if isinstance(value, list) else value
