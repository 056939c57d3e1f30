"""Agents by name, as `config.evaluate.policies` lists them:

base, sft, rl            a policy of this run
rl@ITERATION             the policy after that iteration, where `config.rl.keep_every` kept it
[NAME=]hf:FOLDER         a Hugging Face checkpoint
[NAME=]endpoint          the language model of `config.endpoint`
expert                   the scripted expert
nothing                  changes nothing: what the starting script scores
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from mlagent_jax.runtime.errors import ConfigError

OF_THE_RUN = ("base", "sft", "rl")
PLAIN = (*OF_THE_RUN, "expert", "nothing")
_SPEC = re.compile(r"(?:(?P<name>[\w.-]{1,40})=)?(?P<kind>hf|endpoint)(?::(?P<place>.+))?")


@dataclasses.dataclass(frozen=True)
class AgentSpec:
    """One entry of `config.evaluate.policies`."""

    name: str
    """What tables and files call it."""
    kind: str
    """`base`, `sft`, `rl`, `expert`, `nothing`, `hf` or `endpoint`."""
    place: str = ""
    """Folder of a checkpoint."""
    step: int | None = None
    """Of an rl policy that is not the last: the iteration after which it was saved."""


def parse_agent(text: str) -> AgentSpec:
    """Read an entry of `config.evaluate.policies`.

    Raises:
      ConfigError: it names no agent.
    """
    if text in PLAIN:
        return AgentSpec(text, text)
    if iteration := re.fullmatch(r"rl@([1-9]\d*)", text):
        return AgentSpec(text, "rl", step=int(iteration[1]))
    found = _SPEC.fullmatch(text)
    if not found or (found["kind"] == "hf") != bool(found["place"]) or found["name"] in PLAIN:
        raise ConfigError(
            f"config.evaluate.policies names {text!r}; choose among {', '.join(PLAIN)}, rl@ITERATION, "
            "[NAME=]hf:FOLDER and [NAME=]endpoint"
        )
    place = found["place"] or ""
    name = found["name"] or re.sub(r"[^\w.-]+", "-", "-".join(Path(place).parts[-2:])).strip("-") or "endpoint"
    return AgentSpec(name, found["kind"], place)
