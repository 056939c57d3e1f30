"""Names of agents in `config.evaluate.policies`:

base, sft, rl            a policy of this run rl@ITERATION             the policy after that iteration, if
`config.rl.keep_every` kept it [NAME=]hf:FOLDER         a Hugging Face checkpoint [NAME=]endpoint          the language
model of `config.endpoint` expert                   the scripted expert nothing                  changes nothing: the
score of the starting script
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
    """Name in tables and files."""
    kind: str
    """Kind: `base`, `sft`, `rl`, `expert`, `nothing`, `hf` or `endpoint`."""
    place: str = ""
    """Folder of a checkpoint."""
    step: int | None = None
    """Iteration of an intermediate rl policy; None: the last."""


def parse_agent(text: str) -> AgentSpec:
    """Parse an entry of `config.evaluate.policies`.

    Raises:
      ConfigError: It names no agent.
    """
    if text in PLAIN:
        return AgentSpec(text, text)
    if iteration := re.fullmatch(r"rl@([1-9]\d*)", text):
        return AgentSpec(text, "rl", step=int(iteration[1]))
    match = _SPEC.fullmatch(text)
    if not match or (match["kind"] == "hf") != bool(match["place"]) or match["name"] in PLAIN:
        raise ConfigError(
            f"config.evaluate.policies names {text!r}; choose among {', '.join(PLAIN)}, rl@ITERATION, "
            "[NAME=]hf:FOLDER and [NAME=]endpoint"
        )
    place = match["place"] or ""
    name = match["name"] or re.sub(r"[^\w.-]+", "-", "-".join(Path(place).parts[-2:])).strip("-") or "endpoint"
    return AgentSpec(name, match["kind"], place)
