"""Settings of what the CPU hosts and an endpoint do: tasks, workers, requests."""

from __future__ import annotations

import dataclasses

from mlagent_jax.runtime.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Training and evaluation tasks."""

    train: tuple[str, ...] = ()
    """Training tasks: names of embedded tasks, folders, or `suite:DIR` (docs/task_factory.md)."""
    held_out: tuple[str, ...] = ()
    """Held-out tasks, never trained on: names of embedded tasks, folders, or `suite:DIR#GLOB`."""
    micro_train: int = 0
    """Number of additional generated training tasks, spread over the training families."""
    micro_held_out: int = 0
    """Number of additional generated held-out tasks, of families never trained on."""
    seed: int = 0
    """Seed of the tasks' data. Public tables use 0."""
    folder: str = ""
    """Folder of prepared tasks. Empty: `tasks` in the workdir."""


@dataclasses.dataclass(frozen=True)
class WorkersConfig:
    """Execution on CPU hosts: queue, store and sandbox."""

    queue: str = ""
    """URL of the queue, sqlite:///FILE or postgresql://... Empty: a SQLite file in the workdir."""
    store: str = ""
    """Folder or bucket of snapshots and submissions. Empty: `store` in the workdir."""
    slots: int = 2
    """Concurrent executions of the workers that this host starts. 0: workers are started elsewhere."""
    sandbox: str = "auto"
    """Sandbox of executions: auto, docker or bubblewrap."""
    guarantees: tuple[str, ...] = ("filesystem", "network", "processes", "privileges", "output")
    """Isolation guarantees that a worker's sandbox must give. Without them the run does not start, and a worker gets
    none of its jobs."""
    silence_seconds: float = 600.0
    """Maximum time without any result, in seconds; then the run fails."""


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Traces of single steps, host and devices, in `profile/` of the workdir (docs/qualify.md)."""

    iterations: tuple[str, ...] = ()
    """Iterations of rl to trace, from 1, for example 3,4."""
    steps: tuple[str, ...] = ()
    """Steps of sft to trace, from 1."""

    def numbers(self, field: str) -> frozenset[int]:
        """Return the steps that a field lists.

        Raises:
          ConfigError: One is no number from 1.
        """
        named = getattr(self, field)
        for each in named:
            if not each.isdecimal() or not int(each):
                raise ConfigError(f"config.profile.{field} names {each!r}; list numbers from 1, for example 3,4")
        return frozenset(map(int, named))


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """Language model behind an OpenAI-compatible endpoint: expert, source of ideas, or agent to evaluate."""

    url: str = ""
    """Base URL, for example http://localhost:8000/v1. Empty: no endpoint."""
    model: str = ""
    """Name of the model at the endpoint."""
    key_variable: str = "MLAGENT_ENDPOINT_KEY"
    """Environment variable that holds the API key, so that no file or argument does. Unset it if no key is needed."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus probability of sampling."""
    max_tokens: int = 1024
    """Maximum tokens per completion."""
    limit_field: str = "max_tokens"
    """Request field that carries `max_tokens`: max_tokens or max_completion_tokens."""
    send_temperature: bool = True
    """Whether requests contain `temperature`. Set False for reasoning models, which reject it."""
    send_top_p: bool = True
    """Whether requests contain `top_p`. Set False for reasoning models, which reject it."""
    send_seed: bool = True
    """Whether requests contain a seed. Set False for endpoints that reject it."""
    concurrency: int = 8
    """Maximum concurrent requests."""
    requests_per_minute: int = 0
    """Maximum requests in any 60 seconds. 0: no limit."""
    tokens_per_minute: int = 0
    """Maximum tokens in any 60 seconds, counting prompts and the longest possible completions. 0: no limit."""
    timeout_seconds: float = 120.0
    """Time limit of one attempt, in seconds."""
    attempts: int = 8
    """Maximum attempts per completion."""
    backoff_seconds: float = 1.0
    """Pause after the first failed attempt, in seconds; it doubles with each further failure."""
    budget_tokens: int = 0
    """Maximum prompt and completion tokens per run, restarts included. 0: no limit."""
    budget_cost: float = 0.0
    """Maximum cost per run, restarts included, in the currency of the prices. 0: no limit."""
    prompt_price: float = 0.0
    """Price of a million prompt tokens."""
    completion_price: float = 0.0
    """Price of a million completion tokens."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of one completion, in the currency of the prices."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6
