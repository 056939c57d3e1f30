"""Sandboxes for untrusted scripts: `open_sandbox` returns a `Sandbox`, or an error with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from environments.registry import Registry
from environments.sandbox.base import (
    GUARANTEES,
    Ending,
    Execution,
    Sandbox,
    SandboxError,
    SandboxUnavailableError,
)
from environments.sandbox.bubblewrap import BubblewrapSandbox
from environments.sandbox.docker import DockerSandbox

__all__ = [
    "GUARANTEES",
    "SANDBOXES",
    "Ending",
    "Execution",
    "Sandbox",
    "SandboxError",
    "SandboxUnavailableError",
    "open_sandbox",
]

SANDBOXES: Registry[Callable[[], Sandbox]] = Registry("sandbox", group="mlagent_jax.sandboxes")
"""Sandboxes by name; installed packages add theirs with an entry point in this group."""
SANDBOXES.register("docker")(DockerSandbox)
SANDBOXES.register("bubblewrap")(BubblewrapSandbox)
_AUTO = ("docker", "bubblewrap")
"""Sandboxes in the order in which `auto` tries them."""


def open_sandbox(name: str = "auto", required: Iterable[str] = ()) -> Sandbox:
    """Start a sandbox on this host.

    Args:
      name: name in `SANDBOXES`, or "auto" for the first of ours that works here.
      required: names of `GUARANTEES` that must hold; each is tested before this returns.

    Raises:
      ValueError: an unknown name or guarantee.
      SandboxUnavailableError: it cannot run here, or lacks a required guarantee; the message has the remedy.
    """
    required = frozenset(required)
    if unknown := sorted(required - frozenset(GUARANTEES)):
        raise ValueError(f"required: no guarantee is named {unknown[0]!r}; there are {', '.join(GUARANTEES)}")
    reasons = []
    for candidate in _AUTO if name == "auto" else [name]:
        try:
            return _open(candidate, required)
        except SandboxUnavailableError as error:
            reasons.append(str(error))
    raise SandboxUnavailableError("\n".join(reasons))


def _open(name: str, required: frozenset[str]) -> Sandbox:
    sandbox = SANDBOXES.get(name)()
    missing = sorted(required - sandbox.guarantees) if required else []
    if missing:
        sandbox.close()
        raise SandboxUnavailableError(
            f"the sandbox {name!r} does not give {', '.join(missing)} on this host ({GUARANTEES[missing[0]]}): "
            "run the worker where it may make control groups (as root, or with a Docker engine), or require less"
        )
    return sandbox
