"""The stages of a run, by the name that the config lists them under; each wires the rooms together and writes its part
of the workdir."""

from __future__ import annotations

from collections.abc import Callable

from mlagent_jax.run import Run
from mlagent_jax.stages.collect import collect
from mlagent_jax.stages.evaluate import evaluate
from mlagent_jax.stages.export import export
from mlagent_jax.stages.rl import rl
from mlagent_jax.stages.sft import sft

STAGES: dict[str, Callable[[Run], None]] = {
    "collect": collect,
    "sft": sft,
    "evaluate": evaluate,
    "rl": rl,
    "export": export,
}
