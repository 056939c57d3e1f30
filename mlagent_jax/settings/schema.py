"""Every setting of a run, with its unit and default; the files under `configs/` change what they need.

A config file returns `default_config()` with changes: an ml_collections ConfigDict, so that absl flags override any
field (`--config.rl.clip=0.1`). The program itself reads the frozen `Config` that `freeze` makes of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mlagent_jax.settings import typed_fields
from mlagent_jax.settings.checks import STAGES, check


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The policy: a Hugging Face checkpoint, or a Qwen2 architecture from scratch."""

    checkpoint: str = ""
    """Hugging Face folder or hub id, OWNER/NAME[@REVISION]; empty: from scratch, with the shape below."""
    hidden_size: int = 192
    """Width of the residual stream; a multiple of num_heads."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 6
    """Query heads, hidden_size / num_heads wide."""
    num_kv_heads: int = 2
    """Key and value heads; a divisor of num_heads."""
    intermediate_size: int = 512
    """Width of the MLP."""
    compute_dtype: str = "float32"
    """Of activations: float32 or bfloat16."""
    param_dtype: str = "float32"
    """Of the parameters that the optimizer updates."""
    remat: str = "none"
    """What a backward pass computes again: none, dots (all but the projections) or full (whole layers)."""
    attention: str = "auto"
    """Attention kernel: auto, xla, cudnn or splash. One that cannot run here is an error."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh (-1 takes what the others leave), and what is split over which."""

    data: int = -1
    """Copies of the parameters, each with a share of the batch."""
    fsdp: int = 1
    """Shares of the parameters that are gathered layer by layer; also shares of the batch."""
    tensor: int = 1
    """Shares of each matrix that stay apart."""
    rules: str = ""
    """Rows of the table from logical axes to mesh axes that differ from the default one (docs/memory.md), for example
    `embed=data+fsdp,vocab=`; after a `=` nothing: whole on every device."""

    @property
    def shape(self) -> dict[str, int]:
        """Devices along each axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): sft and rl train them alone, on the policy before the stage as it is."""

    rank: int = 0
    """0: no adapters, every parameter is trained."""
    alpha: float = 32.0
    """A correction counts alpha / rank times."""
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    """Linear maps that get an adapter: those of the layers, and `head` where it is not tied to the embedding."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What the optimizer keeps for each trained parameter, in sft and rl alike."""

    moments: str = "float32"
    """float32; bfloat16: the first moment, the second stays float32; factored: Adafactor's rows and columns of the
    second moment, and no first."""
    placement: str = "device"
    """Where the moments are between updates: device, or host (pinned memory of the device's host), which leaves the
    device's to other things and takes time at each update; the results are the same."""
    rounding: str = "nearest"
    """Of an update to bfloat16 parameters: nearest, or stochastic, so that small updates are not lost; parameters in
    float32 (policy.param_dtype) are master weights, and nearest is right for them."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What `tools/plan.py` plans for; a run does not read it."""

    slice: str = ""
    """Devices by name, as in `mlagent_jax/parallelism/slices.py`; empty: has to be named on the command line."""
    model: str = ""
    """A `config.json` (or a folder with one) of a policy like `policy.checkpoint`, where that does not exist yet."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary of a policy from scratch; a checkpoint brings its own."""

    vocab_size: int = 1024
    """Pieces, special tokens included."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """How a state is rendered."""

    profile: str = "compact"
    """Grammar of replies: compact (Action and Action Input), or full (MLAgentBench's six labels)."""
    max_prompt_tokens: int = 320
    """Prompts over it lose their oldest steps first."""
    max_action_tokens: int = 96
    """An action that is not finished by then is cut, and counts as invalid."""
    history_steps: int = 3
    """Past steps shown."""
    editor: str = ""
    """Name of a second language model, behind `Edit Script (AI)` and `Understand File`: prompts offer them (profile
    full), and only workers whose $MLAGENT_EDITOR_MODEL it is take the jobs. Empty: they are not offered."""


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """What is trained and tested on."""

    train: tuple[str, ...] = ()
    """Names of embedded tasks, or folders."""
    held_out: tuple[str, ...] = ()
    """Likewise, never trained on."""
    micro_train: int = 0
    """Generated micro-tasks to train on besides, drawn over the training families."""
    micro_held_out: int = 0
    """Generated micro-tasks of families never trained on."""
    seed: int = 0
    """Seed of the tasks' data. Public tables use 0."""
    folder: str = ""
    """Where prepared tasks are kept; empty: `tasks` in the workdir."""


@dataclasses.dataclass(frozen=True)
class WorkersConfig:
    """The CPU hosts' side: queue, store and sandbox."""

    queue: str = ""
    """URL, sqlite:///FILE or postgresql://...; empty: a SQLite file in the workdir."""
    store: str = ""
    """Folder or bucket of snapshots and submissions; empty: `store` in the workdir."""
    slots: int = 2
    """Executions at once by workers started on this host; 0: workers are started elsewhere."""
    sandbox: str = "auto"
    """auto, docker or bubblewrap."""
    guarantees: tuple[str, ...] = ("filesystem", "network", "processes", "privileges", "output")
    """Guarantees without which the run does not start, and a worker gets none of its jobs."""
    silence_seconds: float = 600.0
    """The run fails loudly when nothing came back for so long."""


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """A language model behind an OpenAI-compatible endpoint: expert, source of ideas, or agent to evaluate."""

    url: str = ""
    """Base URL, for example http://localhost:8000/v1; empty: none."""
    model: str = ""
    """Its name there."""
    key_variable: str = "MLAGENT_ENDPOINT_KEY"
    """Environment variable with the key, which is in no file and no argument; unset where none is needed."""
    temperature: float = 1.0
    """Of its answers."""
    top_p: float = 1.0
    """Of its answers."""
    max_tokens: int = 1024
    """Of an answer, at most."""
    limit_field: str = "max_tokens"
    """What the endpoint calls that limit: max_tokens or max_completion_tokens."""
    send_temperature: bool = True
    """Send `temperature` with every request; reasoning models refuse one."""
    send_top_p: bool = True
    """Send `top_p` with every request; reasoning models refuse one."""
    send_seed: bool = True
    """Send a seed with every request; some endpoints refuse one."""
    concurrency: int = 8
    """Requests at once."""
    requests_per_minute: int = 0
    """At most, in any 60 seconds; 0: no limit."""
    tokens_per_minute: int = 0
    """Prompts and answers at their longest, in any 60 seconds; 0: no limit."""
    timeout_seconds: float = 120.0
    """Of one attempt."""
    attempts: int = 8
    """At one answer."""
    backoff_seconds: float = 1.0
    """Pause after the first failed attempt; it doubles with each."""
    budget_tokens: int = 0
    """Tokens of all prompts and answers of a run, restarts included; 0: no limit."""
    budget_cost: float = 0.0
    """Money, likewise, in the currency of the prices; 0: no limit."""
    prompt_price: float = 0.0
    """Of a million prompt tokens."""
    completion_price: float = 0.0
    """Of a million answered tokens."""

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one answer, in the currency of the prices."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


@dataclasses.dataclass(frozen=True)
class IdeasConfig:
    """Which ideas the prompts of an expert are drawn from."""

    source: str = "library"
    """library: the built-in one; endpoint: the language model of `endpoint` is asked for them."""
    keep: int = 0
    """The most diverse candidates of a task that are kept, as the paper does with 10; 0: the whole library."""
    candidates: int = 100
    """Distinct ideas that a language model is asked for; the library has at least 100 for each embedded task."""
    embedder: str = "tfidf"
    """Whose distances count: tfidf (offline), or endpoint (`embedding_model` of `endpoint`)."""
    embedding_model: str = ""
    """Name of the embedding model there."""


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Expert trajectories, from prompts enriched with ideas."""

    expert: str = "scripted"
    """scripted; endpoint: the language model of `endpoint`; policy: `policy.checkpoint` itself."""
    trajectories: int = 4
    """Per training task."""
    steps: int = 5
    """Per trajectory, at most."""
    enriched: bool = True
    """Training trajectories start from prompts with ideas. False (a control): from plain ones, and the scripted expert
    reaches for a few favourites of its own."""
    min_ideas: int = 1
    """Ideas drawn for a trajectory's prompt, at least."""
    max_ideas: int = 3
    """Ideas drawn for a trajectory's prompt, at most."""
    error_rate: float = 0.12
    """Share of the expert's edits that hold a slip, so that the data teaches recovery."""
    look_rate: float = 0.08
    """Share of steps that only look (run, list, inspect)."""


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on the action tokens of expert steps."""

    epochs: int = 8
    """Passes over the steps."""
    renderings: int = 1
    """Prompts made of each step an epoch."""
    idea_rate: float = 0.3
    """Share of prompts that carry their trajectory's ideas; the policy acts without them later."""
    batch_size: int = 16
    """Rows a step."""
    micro_batch: int = 0
    """Rows a pass of the device, a divisor of `batch_size`; 0: all at once. Gradients add up exactly."""
    packing: bool = True
    """Several samples to a row, none of which attends to another; False: one a row, padded to the batch's longest."""
    row_tokens: int = 512
    """Tokens a row, at most."""
    learning_rate: float = 2e-5
    """At its highest."""
    warmup_fraction: float = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    schedule: str = "cosine"
    """cosine or constant."""
    weight_decay: float = 0.0
    """Decoupled, as AdamW's."""
    optimizer: str = "adamw"
    """adamw or muon."""
    max_grad_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it."""
    held_out_fraction: float = 0.0
    """Share of each training task's trajectories that are evaluated on and not trained on; 0: none."""
    evaluate_every: int = 0
    """Steps between evaluations on them; 0: once an epoch."""
    patience: int = 0
    """Evaluations in a row without a lower loss, after which training stops; its policy is that of the lowest. 0: all
    epochs are trained, and the last policy counts."""
    checkpoint_seconds: float = 30.0
    """Between checkpoints."""


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Which recorded steps of training tasks sft imitates."""

    outcomes: tuple[str, ...] = ("scored", "no_edit")
    """How they ended; deliberate slips are never imitated."""
    min_gain: float = -1000.0
    """Improvement of the metric, as a share of the distance from the starting script to the best known score, at least.
    Steps that were not scored have none, and pass."""
    max_characters: int = 0
    """Of prompt and action together, at most; 0: any."""
    duplicates: bool = True
    """Whether the same action in the same state may come again, ideas apart; False: the first one alone."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Of actions, in rl and evaluate alike: behaviour log-probs and the trainer's are at the same temperature."""

    temperature: float = 1.0
    """Logits are divided by it."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    """Smallest set of tokens of at least this probability; 1: all."""
    slots: int = 32
    """Sequences decoded at once."""
    rules: str = ""
    """Rows of the sampler's sharding rules that differ from its own choice (docs/memory.md), in the form of
    `mesh.rules`, for example `heads=tensor,kv_heads=tensor`. The choice: weights split over all devices that divide
    them, slots over those that the heads leave."""


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Step-wise PPO (arXiv 2505.23723)."""

    iterations: int = 40
    """Batches sampled, executed and trained on."""
    rollout: str = "step"
    """step: one action from each state of the pool (step-wise RL); episode: whole episodes from the tasks' starts, each
    of their actions trained on what the episode reached (episode-wise RL, the baseline; synchronous)."""
    episode_steps: int = 4
    """Steps of an episode, at most, where `rollout` is episode."""
    states: int = 12
    """Drawn from the pool per iteration."""
    samples: int = 4
    """Actions sampled per state."""
    reward: str = "improvement"
    """Reward by name: improvement, paper_v1, paper_v2, noise (a control), or one of your own (docs/add_a_reward.md).
    Parameters follow a colon: `improvement:neutral=0.2`; `python -m environments rewards` lists them."""
    estimator: str = "gae"
    """Advantages: gae, grpo, rloo or reinforce_plus_plus."""
    best_of: int = 1
    """Above 1: an action is rewarded by what it adds to the best of so many from its state, at most `samples`."""
    best_of_weight: float = 1.0
    """Of the best of `best_of` in what is maximised; the rest of 1 is the mean reward's, which alone punishes a failure
    beside a success."""
    gamma: float = 1.0
    """Discount a token of the action."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation, a token of the action; the action's last token is terminal."""
    epochs: int = 2
    """Passes over a batch."""
    minibatches: int = 2
    """Optimizer steps an epoch."""
    learning_rate: float = 1e-6
    """Of the policy, constant."""
    critic: str = "head"
    """head: a value head on the policy's backbone; separate: a backbone of its own besides, which begins as the SFT
    policy and takes as much memory as the policy."""
    critic_learning_rate: float = 1e-3
    """Of the value head, or of the separate critic as a whole (then about the policy's)."""
    max_grad_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it."""
    micro_batch: int = 0
    """Rows a pass of the device, a divisor of a mini-batch; 0: all at once. Gradients add up exactly."""
    micro_tokens: int = 0
    """Tokens a pass of the device, padding included, in place of `micro_batch`; 0: by `micro_batch`."""
    duration_weighting: bool = False
    """Actions count in the policy's gradient in proportion to their execution seconds (arXiv 2509.01684)."""
    clip: float = 0.2
    """The ratio of the policies counts from 1 - clip to 1 + clip."""
    clip_high: float = 0.0
    """Upper clip of the ratio, 0: the same as `clip`."""
    dual_clip: float = 0.0
    """Bound on the ratio where the advantage is negative, above 1; 0: off."""
    value_clip: float = 0.2
    """How far a value may move from its old one in a batch."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    kl_coefficient: float = 0.01
    """Weight of the KL to the SFT policy, in the loss or the reward."""
    kl_in: str = "loss"
    """Where the KL to the SFT policy counts: loss, or reward (of each token, before advantages)."""
    kl_estimator: str = "k3"
    """Of the KL to the SFT policy: k1, k2 or k3; k1 belongs in the reward."""
    kl_target: float = 0.0
    """Adaptive KL coefficient: the target in nats a token; 0: fixed."""
    max_kl: float = 10.0
    """Nats a token to the SFT policy: above it the run stops, with the batch saved."""
    aggregation: str = "token"
    """Mean of the loss: token or sequence."""
    max_importance_weight: float = 5.0
    """Truncation of proximal / behaviour, when batches are stale."""
    max_staleness: int = 1
    """Policy versions between sampling and training. 0: synchronous, every action is of the current version."""
    sample_ahead: bool = True
    """With `max_staleness` above 0, in one process: the next batch is sampled while this one is waited for and trained
    on, from a copy of the weights in the compute dtype, which stands beside the update with the sampler's cache."""
    straggler_seconds: float = 0.0
    """How long a batch waits for its oldest states before younger ones take their place; the stragglers are trained on
    later, within `max_staleness`, of which one version is left to them. 0: as long as it takes."""
    checkpoint_every: int = 1
    """Iterations."""
    keep_every: int = 0
    """Checkpoints of iterations that it divides stay, so that `evaluate.policies` may name them (`rl@8`); 0: the last
    two alone."""


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """The state pool."""

    trajectories: str = ""
    """Trajectories of another run's workdir; empty: this run's."""
    max_depth: int = 4
    """Steps of history of a state, at most."""
    sampling: str = "uniform"
    """Within a task and depth, which are balanced: uniform, or learnability (likelier where rewards varied more)."""
    refresh_fraction: float = 0.0
    """Share of a batch's states drawn from those that the policy itself reached."""
    refresh_size: int = 256
    """Of such states kept; the oldest leave."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Fixed states (one action) and episodes, held-in and held-out."""

    policies: tuple[str, ...] = ("base", "sft", "rl")
    """Agents, those of them that exist and are not evaluated yet: base, sft, rl (of this run), rl@ITERATION (see
    `rl.keep_every`), expert (the scripted one), nothing (changes nothing), [NAME=]hf:FOLDER (a checkpoint) and
    [NAME=]endpoint (of config.endpoint)."""
    reward: str = "improvement"
    """What step rewards are reported in, whatever was trained on; see `rl.reward`."""
    states_held_in: int = 48
    """Fixed states of training tasks, for policies; 0: none."""
    states_held_out: int = 48
    """Fixed states of held-out tasks."""
    samples: int = 4
    """Actions per fixed state."""
    episode_tasks_held_in: int = 6
    """Training tasks that episodes are played on, the first ones of tasks.train."""
    episode_tasks_held_out: int = 4
    """Likewise, of tasks.held_out."""
    trajectories: int = 3
    """Episodes a task."""
    best_of: int = 3
    """The k of best@k, reported without bias from all trajectories of a task."""
    steps: int = 4
    """Steps an episode, at most."""
    minutes: float = 30.0
    """Of an episode's own replies and scripts; no step begins after them."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The Hugging Face folder."""

    policy: str = "rl"
    """Which one: sft or rl."""
    layout: str = "merged"
    """merged: a whole checkpoint, adapters added to its weights; peft: the adapters alone, as PEFT keeps them."""
    dtype: str = "float32"
    """Of the files: float32, bfloat16 or float16."""
    max_shard_mb: int = 4096
    """Size of a file of weights, at most."""


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl` and TensorBoard, which are always written."""

    trackers: tuple[str, ...] = ()
    """wandb, mlflow; what they take from the environment ($WANDB_API_KEY, $MLFLOW_TRACKING_URI) is as ever."""
    project: str = "mlagent-jax"
    """The project (wandb), or the experiment (mlflow)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    stages: tuple[str, ...] = STAGES
    """In order; a stage may come twice (evaluate does, before and after rl)."""
    seed: int = 0
    """Of everything random but the tasks' data."""
    plugins: tuple[str, ...] = ()
    """Python files (paths that end in .py) and modules that register functions of your own when they are imported.
    Workers on other hosts take them from $MLAGENT_PLUGINS."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    tasks: TasksConfig = dataclasses.field(default_factory=TasksConfig)
    workers: WorkersConfig = dataclasses.field(default_factory=WorkersConfig)
    endpoint: EndpointConfig = dataclasses.field(default_factory=EndpointConfig)
    ideas: IdeasConfig = dataclasses.field(default_factory=IdeasConfig)
    collect: CollectConfig = dataclasses.field(default_factory=CollectConfig)
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    sft: SFTConfig = dataclasses.field(default_factory=SFTConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    rl: RLConfig = dataclasses.field(default_factory=RLConfig)
    pool: PoolConfig = dataclasses.field(default_factory=PoolConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


_PACE = ("url", "concurrency", "attempts", "backoff_seconds", "timeout_seconds", "key_variable")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "budget_tokens", "budget_cost")
MAY_CHANGE = (
    *("stages", "workers", "mesh", "plan", "sampling.slots", "optimizer.placement", "tracking", "plugins"),
    *(f"endpoint.{name}" for name in (*_PACE, *_LIMITS)),
)
"""Settings that another start of the same workdir may change: they decide where and how fast, not what."""


def default_config() -> ConfigDict:
    """All fields at their defaults; config files change what they need."""
    return ConfigDict(dataclasses.asdict(Config()))


def freeze(config: ConfigDict) -> Config:
    """The typed, checked form.

    Raises:
      ConfigError: an unknown field (the nearest is named), a wrong type or an impossible value.
    """
    frozen = typed_fields.read(Config, config.to_dict(), "config")
    check(frozen)
    return frozen


def differences(stored: dict[str, Any], config: Config) -> list[str]:
    """What differs between a workdir's stored config and this one, `MAY_CHANGE` left out: `name: stored -> new`."""
    new, found = dataclasses.asdict(config), []

    def walk(old: Any, now: Any, default: Any, path: str) -> None:
        if path in MAY_CHANGE:
            return
        if isinstance(old, dict) and isinstance(now, dict):
            old = default | old  # a workdir from before a field existed has it at its default
            for name in sorted({*old, *now}):
                walk(old.get(name), now.get(name), default.get(name, {}), f"{path}.{name}" if path else name)
        elif _plain(old) != _plain(now):
            found.append(f"{path}: {old!r} -> {now!r}")

    walk(stored, new, dataclasses.asdict(Config()), "")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_field(path: str) -> Any:
    """The type of the field of this name, for example `rl.clip`.

    Raises:
      ConfigError: there is none; the message names the nearest.
    """
    return typed_fields.find(Config, path, "config")
