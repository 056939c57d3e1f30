"""Checks before any work of config inputs on this host that only a later stage reads."""

from __future__ import annotations

import os

from etils import epath

from environments.actions.second_model import MODEL_VARIABLE, URL_VARIABLE, configured_endpoint, editor_id
from mlagent_jax.checkpoints import hub
from mlagent_jax.checkpoints.policies import locate
from mlagent_jax.runtime import processes, trackers
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.agent_names import OF_THE_RUN, parse_agent
from mlagent_jax.settings.schema import Config
from mlagent_jax.trajectories.store import TrajectoryStore

EXECUTING = {"collect", "evaluate", "rl"}
"""Stages that submit jobs. The others need neither queue nor workers; export needs no tasks either."""


def collection_asks_endpoint(config: Config) -> bool:
    """Return whether the collect stage sends requests to `config.endpoint`."""
    return "endpoint" in (config.collect.expert, config.ideas.source, config.ideas.embedder)


def editor_required(config: Config) -> tuple[str, ...]:
    """Return the id of the second model that jobs require of their workers, if prompts offer its actions."""
    return (editor_id(config.prompt.editor),) if config.prompt.editor else ()


def check_editor(config: Config) -> None:
    """Check that this host's workers, which inherit its environment variables, will have the second model.

    Raises:
      ConfigError: The variables name none, or another.
    """
    try:
        endpoint = configured_endpoint()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if (required := editor_required(config)) and (endpoint is None or endpoint.id not in required):
        raise ConfigError(
            f"config.prompt.editor is {config.prompt.editor!r}, and this host's workers would have "
            f"{endpoint.model if endpoint else 'no second model'}: set ${URL_VARIABLE} and ${MODEL_VARIABLE}, or "
            "config.workers.slots to 0 where workers are started elsewhere"
        )


def check_inputs(config: Config) -> None:
    """Check trackers, checkpoint and trajectories, and that the stages support several processes.

    Raises:
      ConfigError: An input is missing, or the stages need one process.
    """
    trackers.check_installed(config.tracking.trackers)
    if collection_asks_endpoint(config) and "collect" in config.stages and processes.count() > 1:
        raise ConfigError(
            f"config.stages has collect, which would ask config.endpoint in each of {processes.count()} processes: "
            "collect in one process, and name its workdir in config.pool.trajectories"
        )
    trajectories = config.pool.trajectories
    if config.policy.checkpoint and _needs_policy(config):
        _check_checkpoint("config.policy.checkpoint", config.policy.checkpoint)
    for agent in map(parse_agent, config.evaluate.policies if "evaluate" in config.stages else ()):
        if agent.kind == "hf":
            _check_checkpoint(f"config.evaluate.policies: {agent.name}", agent.place)
    if trajectories:
        try:
            TrajectoryStore.open(epath.Path(trajectories) / "trajectories" / "collect")
        except ConfigError as error:
            raise ConfigError(
                f"config.pool.trajectories is {trajectories!r}: {error}; or name the workdir of another run"
            ) from error


def _check_checkpoint(field: str, place: str) -> None:
    """Check that `place`, the value of `field`, is a checkpoint: a folder, another run's, or a repository of the hub.

    Raises:
      ConfigError: It is none that can be used.
    """
    try:
        if (epath.Path(place) / "config.json").exists() or locate(place) is not None:
            return
        if hub.is_hub_id(place) and not epath.Path(place).exists():
            hub.check(place)
            return
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{field} is {place!r}: {error}") from error
    raise ConfigError(
        f"{field} is {place!r}; that folder has no config.json: name a Hugging Face checkpoint, or another run's "
        "export, workdir, stage or step"
    )


def check_remote(config: Config, workdir: epath.PathLike) -> None:
    """Check that the config needs nothing that a workdir in a bucket cannot hold.

    Raises:
      ConfigError: The config would put a database or the tasks there.
    """
    stages = set(config.stages)
    asking = "collect" in stages and collection_asks_endpoint(config)
    asking |= "evaluate" in stages and any(parse_agent(name).kind == "endpoint" for name in config.evaluate.policies)
    where = os.fspath(workdir)
    if asking:
        raise ConfigError(
            f"--workdir is {where}, and config.stages would ask config.endpoint, whose answers are kept in a "
            "database: do that in a workdir on this host, and name it in config.pool.trajectories"
        )
    for field, value, is_used, remedy in (
        ("tasks.folder", config.tasks.folder, stages != {"export"}, "a folder on this host"),
        ("workers.queue", config.workers.queue, executing(config), "a postgresql:// one"),
    ):
        if is_used and not value:
            raise ConfigError(f"config.{field} is empty and would be in the workdir, {where}, a bucket: name {remedy}")


def _needs_policy(config: Config) -> bool:
    """Return whether a stage uses `policy.checkpoint`: an evaluation of other agents does not."""
    if set(config.stages) != {"evaluate"}:
        return True
    return any(parse_agent(name).kind in OF_THE_RUN for name in config.evaluate.policies)


def executing(config: Config) -> set[str]:
    """Return the stages of a run that submit jobs; an rl that replays batches submits none."""
    return EXECUTING & set(config.stages) - ({"rl"} if config.rl.replay else set())
