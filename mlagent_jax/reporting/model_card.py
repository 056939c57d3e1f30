"""Model card of an export: a README.md in Hugging Face's format, with base, data, tasks, settings, results, licence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mlagent_jax.reporting import records, summary, table
from mlagent_jax.reporting.findings import learned
from mlagent_jax.runtime.files import write_whole
from mlagent_jax.trajectories.card import FILE

_SETTINGS = (
    *("seed", "policy.param_dtype", "policy.compute_dtype", "lora.rank", "prompt.profile", "prompt.max_prompt_tokens"),
    *("sft.epochs", "sft.batch_size", "sft.learning_rate", "rl.iterations", "rl.states", "rl.samples", "rl.reward"),
    *("rl.estimator", "rl.loss", "rl.learning_rate", "rl.kl_coefficient", "sampling.temperature"),
)
_STAGE_OF = {"sft": "supervised fine-tuning on expert steps", "rl": "supervised fine-tuning, then step-wise RL"}
_LICENSE = re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)


def write_model_card(workdir: epath.PathLike, folder: epath.PathLike, policy: str) -> epath.Path:
    """Write the card of the export in `folder`; return its path.

    Args:
      workdir: Workdir of the run that trained the policy.
      folder: Folder of the export.
      policy: Name of the exported policy, `sft` or `rl`.
    """
    run = records.read_run(workdir)
    path = epath.Path(workdir) / "config.json"
    config = records.read_object(path) if path.exists() else dict(run.info.get("config", {}))
    lines = _lines(config, run.info, summary.figures([run]), policy)
    return write_whole(epath.Path(folder) / FILE, "\n".join(lines) + "\n")


def _lines(
    config: Mapping[str, Any], info: Mapping[str, Any], figures: Mapping[str, Any], policy: str
) -> Iterator[str]:
    base = config.get("policy", {}).get("checkpoint", "")
    license_ = _license_of(base)
    tasks, collect = config.get("tasks", {}), config.get("collect", {})
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", f"license: {license_}")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base):
        yield f"base_model: {base}"
    yield from ("tags:", "- ml-agent-jax", "- machine-learning-engineering", "---", "")
    yield from ("# A policy for machine-learning engineering", "")
    yield (
        f"Given the state of a task, it proposes one step: an edit of the training script, a run, a look at a file. It "
        f"was made by {_STAGE_OF.get(policy, policy)} with ML-Agent JAX (arXiv 2505.23723)."
    )
    yield from ("", "## Base", "", base or "None: trained from random weights, with a tokenizer of its own.", "")
    yield from ("## Data", "")
    others = config.get("pool", {}).get("trajectories")
    source = others or "this run"
    # Nothing is known of what taught a model behind an endpoint, or of the steps of others.
    scripted = collect.get("expert") == "scripted" and not others
    yield (
        f"Steps of the expert `{collect.get('expert')}`, collected by {source}: {collect.get('trajectories')} "
        f"trajectories a task of up to {collect.get('steps')} steps.{' No human data.' if scripted else ''}"
    )
    yield from ("", "## Tasks", "")
    for title, names, micro in (
        ("Trained on", tasks.get("train", ()), tasks.get("micro_train", 0)),
        ("Held out", tasks.get("held_out", ()), tasks.get("micro_held_out", 0)),
    ):
        yield f"- {title}: {', '.join(names) or 'none named'}{f', and {micro} generated ones' if micro else ''}."
    yield from ("", "## Settings", "", "| setting | value |", "|---|---|")
    for name in _SETTINGS:
        section, _, field = name.rpartition(".")
        value = (config.get(section, {}) if section else config).get(field)
        if value is not None:
            yield f"| `{name}` | {value} |"
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
    yield from ("", f"All settings are in the run's `config.json`. {versions}.", "", "## Results", "")
    yield learned(figures)
    if figures["policies"]:
        yield from ("", table.policy_table(figures), "")
        yield "Means with 95% intervals; gains are relative to the starting script, on labels used for nothing else."
    yield from ("", "## Licence", "")
    if not base:
        yield "Apache-2.0, as the code that made it."
    else:
        known = (
            f"`{license_}`, as its card says" if license_ != "other" else "not stated where it was read: ask its owner"
        )
        yield f"That of the base: {known}."
    yield from ("", "## Limits", "")
    yield "It writes code that is executed. Run it in a sandbox, as this project does, and read what it proposes."


def _license_of(base: str) -> str:
    """Return the licence that a local base's card states; `other` if it states none."""
    if not base:
        return "apache-2.0"
    card = epath.Path(base) / FILE
    stated = _LICENSE.search(card.read_text()) if card.exists() else None
    return stated[1] if stated else "other"
