"""A task as a registered Gymnasium environment: actions and observations are texts.

env = gymnasium.make("environments.interfaces.gymnasium_env:mlagent/Task-v0", task="digits")

The part before the colon makes Gymnasium import this module, which registers the name. The other arguments are those of
`environments.make`. Needs `pip install '.[gymnasium]'`.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium
from gymnasium import spaces

from environments.episode import Episode, make

NAME = "mlagent/Task-v0"
_SAMPLE_LETTERS = 80


class AnyText(spaces.Space[str]):
    """The space of all texts. `gymnasium.spaces.Text` limits characters and length; replies have no such limits."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: None = None, probability: None = None) -> str:
        """Return some letters, which hardly ever parse as a reply."""
        letters = list(string.ascii_letters + string.digits + " \n")
        return "".join(self.np_random.choice(letters, size=_SAMPLE_LETTERS))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    __hash__ = None

    def __repr__(self) -> str:
        return "AnyText()"


class TaskEnv(gymnasium.Env[str, str]):
    """One task. `info` is that of `Episode.step`: the whole `outcome`, and the next `state`."""

    def __init__(self, task: str, **options: Any) -> None:
        """Open the task, which is prepared on first use; `options` are those of `environments.make`.

        Raises:
          TaskError: no such task.
          SandboxUnavailableError: the sandbox cannot run on this host.
        """
        self.observation_space, self.action_space = AnyText(), AnyText()
        self._episode: Episode = make(task, **options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over as `Episode.reset` does; `options` is ignored."""
        super().reset(seed=seed)
        return self._episode.reset(seed=seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one step as `Episode.step` does."""
        return self._episode.step(action)

    def close(self) -> None:
        self._episode.close()


gymnasium.register(NAME, entry_point="environments.interfaces.gymnasium_env:TaskEnv")
