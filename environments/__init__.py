"""Tasks, actions, workspaces, sandboxes, grading and the reward queue: the half that runs on CPU hosts, without JAX.

env = environments.make("digits", sandbox="bubblewrap")
observation, info = env.reset()
observation, reward, terminated, truncated, info = env.step(reply)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from environments.installed import check_installed

if TYPE_CHECKING:
    from environments.episode import Episode, make

__all__ = ["Episode", "make"]

check_installed(("absl", "numpy", "sqlalchemy", "yaml"), ".")


def __getattr__(name: str) -> Any:
    """Import `make` on first use, so that users of the protocol alone do not load the tasks' libraries."""
    if name in __all__:
        from environments import episode

        return getattr(episode, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
