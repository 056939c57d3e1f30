"""A trained agent works on a task of yours.

    python -m mlagent_jax.solve --checkpoint runs/quickstart --task docs/examples/rents --output solved

The checkpoint is what `mlagent_jax.sample` takes, the task a folder (docs/bring_your_own_task.md) or the name of an
embedded one. Each step is shown as it is taken, by the player and the environment of training. `--output` then holds
the best script, its difference to the starting script (`solution.diff`), the scores (`score.json`) and every step
(`steps.jsonl`). The best is chosen on one half of the hidden labels; the score of the other half is told besides.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from environments.episode import Episode, make
from environments.files.blobs import StoreError
from environments.interfaces.terminal import printable
from environments.protocol import Outcome
from environments.sandbox import SANDBOXES
from environments.sandbox.base import SandboxError
from environments.tasks.task import TaskError
from mlagent_jax.runtime import jsonl
from mlagent_jax.settings.policy import PromptConfig

if TYPE_CHECKING:
    from mlagent_jax.agents.episodes import Agent

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
TASK = flags.DEFINE_string("task", None, "Folder of a task, or the name of an embedded one.")
OUTPUT = flags.DEFINE_string("output", "solved", "Folder of what is found.")
STEPS = flags.DEFINE_integer("steps", 8, "Steps of an attempt, at most.", lower_bound=1)
ATTEMPTS = flags.DEFINE_integer("attempts", 1, "Attempts from the start; the best of all is kept.", lower_bound=1)
SANDBOX = flags.DEFINE_enum("sandbox", "auto", ["auto", *SANDBOXES.names()], "Where scripts run.")
SEED = flags.DEFINE_integer("seed", 0, "Of the task's data and of what is sampled.")
TENSOR = flags.DEFINE_integer("tensor", 1, "Devices to split each layer over.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the most probable token.", lower_bound=0.0)
PROFILE = flags.DEFINE_enum(
    "profile",
    None,
    ["compact", "medium", "full"],
    "Of prompts; default: the run's, of a chat model full, else compact.",
)
CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Prepared tasks and snapshots; default: ~/.cache/mlagent-jax.")

OUTPUT_LINES = 12
"""Of an observation, shown at each step; all of it is in `steps.jsonl`."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """The best that was found."""

    script: str
    start: str
    """The starting script."""
    score: float
    """On the half of the labels that it was chosen by."""
    start_score: float
    report: float
    """On the other half."""
    start_report: float
    steps: tuple[dict[str, Any], ...]

    @property
    def improved(self) -> bool:
        return self.script != self.start


def solve(episode: Episode, agent: Agent, attempts: int, console: Console) -> Solution:
    """Let `agent` work on the task of `episode`, showing each step.

    Raises:
      SandboxError: a script could not be executed for reasons of this host.
    """
    from mlagent_jax.agents.episodes import Trajectory, best_submission, play

    start, outcomes, steps = episode.state, [], []
    for attempt in range(attempts):
        waves = play(
            [Trajectory("solve", attempt, start)],
            agent,
            lambda t, action: episode.job(t.state, action.text, cut=action.truncated),
            lambda jobs: [episode.take(job) for job in jobs],
            episode.max_steps,
        )
        with console.status("working"):
            for number, ((_, step),) in enumerate(waves):
                action, outcome = step.action.text, step.outcome
                outcomes.append(outcome)
                steps.append({"attempt": attempt, "step": number, "action": action, "outcome": outcome.to_dict()})
                _show(console, f"{attempt + 1}.{number + 1}" if attempts > 1 else str(number + 1), action, outcome)
    best = best_submission(outcomes)
    if best is not None and best.scale.delta(start.metric, best.metric_after) <= 0:
        best = None
    return Solution(
        script=start.script if best is None else best.script,
        start=start.script,
        score=start.metric if best is None else best.metric_after,
        start_score=start.metric,
        report=episode.report_score(None if best is None else best.submission),
        start_report=episode.report_score(None),
        steps=tuple(steps),
    )


def _show(console: Console, number: str, action: str, outcome: Outcome) -> None:
    """A step for people. What policy and script wrote is text: no markup is followed, no escape code passed on."""
    scored = outcome.metric_after is not None
    metric = f"  metric {outcome.metric_before:.4g} -> {outcome.metric_after:.4g}" if scored else ""
    console.rule(Text(f"step {number}: {outcome.kind}  reward {outcome.reward:.3f}{metric}  {outcome.seconds:.1f} s"))
    if outcome.diff:
        console.print(Syntax(printable(outcome.diff), "diff", background_color="default", word_wrap=True))
    else:
        console.print(Text(printable(action)))
    lines = printable(outcome.observation).splitlines()
    left_out = [f"[... {len(lines) - OUTPUT_LINES} lines more ...]"] if len(lines) > OUTPUT_LINES else []
    console.print(Text("\n".join([*left_out, *lines[-OUTPUT_LINES:]]), style="dim"))


def save(solution: Solution, entry: str, metric: str, folder: Path) -> None:
    """Write script, difference, scores and steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / entry).parent.mkdir(parents=True, exist_ok=True)
    (folder / entry).write_text(solution.script, encoding="utf-8")
    lines = [text.splitlines(keepends=True) for text in (solution.start, solution.script)]
    diff = difflib.unified_diff(*lines, f"start/{entry}", f"best/{entry}")
    (folder / "solution.diff").write_text("".join(diff), encoding="utf-8")
    scores = {
        "metric": metric,
        "improved": solution.improved,
        "score": solution.score,
        "start_score": solution.start_score,
        "report_score": solution.report,
        "start_report_score": solution.start_report,
    }
    (folder / "score.json").write_text(json.dumps(scores, indent=1) + "\n")
    jsonl.replace(folder / "steps.jsonl", solution.steps)


def prompt_config(checkpoint: str, profile: str | None, chat: bool) -> PromptConfig:
    """How the policy's prompts are rendered: as in the run that the checkpoint lies in, else by its kind.

    Args:
      chat: whether the tokenizer has a chat template.
    """
    folder = Path(checkpoint).absolute()
    for place in (folder, *folder.parents[:3]):
        config = place / "config.json"
        found = json.loads(config.read_text()) if config.is_file() else {}
        prompt: Mapping[str, Any] | None = found.get("prompt") if isinstance(found, dict) else None
        if isinstance(prompt, dict):
            known = {field.name for field in dataclasses.fields(PromptConfig)}
            settings = PromptConfig(**{name: value for name, value in prompt.items() if name in known})
            return dataclasses.replace(settings, profile=profile or settings.profile, editor="")
    if (profile or ("full" if chat else "compact")) == "full":
        return PromptConfig(profile="full", max_prompt_tokens=8192, max_action_tokens=2048)
    # A script of a person's own is longer than those that the defaults are made for.
    return PromptConfig(profile=profile or "compact", max_prompt_tokens=2048, max_action_tokens=256)


def _agent(
    checkpoint: str, seed: int, temperature: float, profile: str | None
) -> tuple[PromptConfig, Callable[[Mapping[str, Any]], Agent]]:
    """The prompts' settings, and what makes the agent of a task once its spec is known."""
    import jax

    from mlagent_jax.agents.actor import Actor
    from mlagent_jax.agents.factory import PolicyAgent
    from mlagent_jax.agents.prompts import Renderer
    from mlagent_jax.parallelism import make_mesh
    from mlagent_jax.sampling import Distribution, SamplerConfig, TokenSampler
    from mlagent_jax.sampling.checkpoint import load

    mesh = make_mesh({"tensor": TENSOR.value}, jax.devices()[: TENSOR.value])
    jax.set_mesh(mesh)
    model, tokenizer = load(checkpoint, mesh=mesh)
    prompt = prompt_config(checkpoint, profile, tokenizer.has_chat_template)
    settings = SamplerConfig(
        max_new_tokens=prompt.max_action_tokens,
        distribution=Distribution(temperature),
        slots=1,
        prefill_rows=1,
        stop_token_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
    )
    sampler = TokenSampler(model.graph, settings)

    def make_agent(specs: Mapping[str, Any]) -> Agent:
        actor = Actor(sampler, Renderer(tokenizer, prompt, specs), seed)
        return PolicyAgent(actor, model.params, lambda trajectory, depth, place: f"solve/{trajectory.index}/{depth}")

    return prompt, make_agent


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: every setting is a flag")
    logging.set_verbosity(logging.WARNING)  # The steps are what is shown.
    console = Console()
    try:
        from environments import tasks

        tasks.get(TASK.value)  # A task that is not known is said so before weights are loaded.
        prompt, make_agent = _agent(CHECKPOINT.value, SEED.value, TEMPERATURE.value, PROFILE.value)
        with console.status("preparing the task"):
            episode = make(
                TASK.value,
                sandbox=SANDBOX.value,
                profile=prompt.profile,
                max_steps=STEPS.value,
                seed=SEED.value,
                cache_dir=CACHE_DIR.value,
            )
        with episode:
            solution = solve(episode, make_agent({episode.task_key: episode.spec}), ATTEMPTS.value, console)
            save(solution, episode.spec.entry, episode.spec.metric, Path(OUTPUT.value))
            better = "higher" if episode.spec.higher_is_better else "lower"
            metric = episode.spec.metric
    except (OSError, ValueError, SandboxError, StoreError, TaskError) as error:
        sys.exit(f"error: {error}")
    found = f"{solution.start_report:.4g} -> {solution.report:.4g}" if solution.improved else "nothing better was found"
    console.rule()
    told = f"{metric} ({better} is better), on labels used for nothing else: {found}; see {OUTPUT.value}/"
    console.print(told, markup=False)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "task"])
    app.run(main)
