"""Checkpoints by name: a folder, local or in a bucket, or a repository of the Hugging Face hub, which is downloaded.

A repository is named OWNER/NAME, or OWNER/NAME@REVISION for one of its branches, tags or commits. Downloads go into the
hub's usual cache. A complete download is not repeated, and is used without a network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from etils import epath

from mlagent_jax.models.config import ModelConfig
from mlagent_jax.models.tokenizer import FILES
from mlagent_jax.runtime.files import read_json

_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?")


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Return whether `name` has the form of a repository's name. A relative path of two parts has it too."""
    return _NAME.fullmatch(os.fspath(name)) is not None


def split(name: str) -> tuple[str, str | None]:
    """Return the repository and its revision, as other libraries take them; for a folder, its path and None."""
    found = None if Path(name).is_dir() else _NAME.fullmatch(name)
    return (found["repository"], found["revision"]) if found else (name, None)


def fetch(name: str | os.PathLike[str]) -> epath.Path:
    """Return the folder of a checkpoint (configs, weights, tokenizer): local, in a bucket, or downloaded from the hub.

    Raises:
      FileNotFoundError: there is no such folder, and the hub does not give it; the message has the remedy.
    """
    folder = epath.Path(name)
    if folder.is_dir():
        return folder
    if not (found := _NAME.fullmatch(os.fspath(name))):
        raise FileNotFoundError(f"{folder} does not exist: name a folder, or a repository of the hub as OWNER/NAME")
    import huggingface_hub  # Only for downloads.

    repository, revision = found["repository"], found["revision"]
    wanted = ["*.json", "*.safetensors", *FILES]
    try:
        return epath.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        raise FileNotFoundError(f"no folder {folder}, and {_why(error, repository, revision)}") from error


def check(name: str) -> None:
    """Check that a repository of the hub can be read and holds a model that is supported, without its weights.

    Raises:
      FileNotFoundError: As `fetch_config`.
      ValueError: Its model is not supported.
    """
    ModelConfig.from_hf(read_json(fetch_config(name)))


def fetch_config(name: str) -> epath.Path:
    """Return the config.json of a repository of the hub, downloaded without its weights.

    Args:
      name: Hub id. A repository that was downloaded before serves where the hub cannot be reached.

    Raises:
      FileNotFoundError: It cannot be had; the message says what to do.
    """
    import huggingface_hub

    repository, revision = split(name)
    try:
        return epath.Path(huggingface_hub.hf_hub_download(repository, "config.json", revision=revision))
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        raise FileNotFoundError(f"no folder {name}, and {_why(error, repository, revision)}") from error


def _why(error: Exception, repository: str, revision: str | None) -> str:
    """Return why the hub does not give a repository, with the remedy."""
    from huggingface_hub import constants, errors

    log_in = "log in by `hf auth login` or with a token in HF_TOKEN"
    hub = constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{hub}/{repository} is gated: ask for access on that page, and {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no repository {repository!r} that we may read: check the name, or {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{hub}/{repository} has no revision {revision!r}: name one of its branches, tags or commits"
    return (
        f"{hub} did not give {repository!r} ({str(error).splitlines()[0]}): try again, or where there is a network "
        f"`hf download {repository} --local-dir DIR`, and name DIR"
    )
