"""Settings of a run, with units and defaults; the files under `configs/` change what they need.

A config file returns `default_config()` with changes: an ml_collections ConfigDict, so that absl flags can override any
field (`--config.rl.loss=ppo_clip:low=0.1`). The program reads the frozen `Config` that `freeze` returns.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ml_collections import ConfigDict

from mlagent_jax.settings import typed_fields
from mlagent_jax.settings.checks import STAGES, check


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Policy: a Hugging Face checkpoint, or a Qwen2 architecture trained from scratch."""

    checkpoint: str = ""
    """Hugging Face folder or hub id, OWNER/NAME[@REVISION]. Empty: train from scratch with the shape below."""
    hidden_size: int = 192
    """Width of the residual stream; a multiple of num_heads."""
    num_layers: int = 4
    """Number of decoder layers."""
    num_heads: int = 6
    """Number of query heads, each hidden_size / num_heads wide."""
    num_kv_heads: int = 2
    """Number of key and value heads; a divisor of num_heads."""
    intermediate_size: int = 512
    """Width of the MLP."""
    compute_dtype: str = "float32"
    """Dtype of activations: float32 or bfloat16."""
    param_dtype: str = "float32"
    """Dtype of the parameters that the optimizer updates."""
    remat: str = "none"
    """Activations that the backward pass recomputes: none, dots (all but the projections) or full (whole layers)."""
    attention: str = "auto"
    """Attention kernel: auto, xla, cudnn or splash. A kernel that cannot run on this platform is an error."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis (-1: all remaining devices), and the sharding rules."""

    data: int = -1
    """Number of replicas of the parameters; each gets a shard of the batch."""
    fsdp: int = 1
    """Number of parameter shards that are gathered layer by layer; they shard the batch too."""
    tensor: int = 1
    """Number of shards of each matrix that are never gathered (tensor parallelism)."""
    rules: str = ""
    """Changed rows of the table from logical axes to mesh axes (docs/memory.md), for example `embed=data+fsdp,vocab=`.
    Nothing after `=`: replicated."""

    @property
    def shape(self) -> dict[str, int]:
        """Return the number of devices along each axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021), trained by sft and rl on top of the frozen policy before the stage."""

    rank: int = 0
    """Rank of the adapters. 0: no adapters, every parameter is trained."""
    alpha: float = 32.0
    """Scale numerator: an adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    """Linear maps with an adapter: those of the layers, and `head` if it is not tied to the embedding."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer state of each trained parameter, for sft and rl."""

    moments: str = "float32"
    """Format of the moments: float32; bfloat16 (first moment only, the second stays float32); or factored (Adafactor's
    row and column statistics of the second moment, no first moment)."""
    placement: str = "device"
    """Location of the moments between updates: device, or host (pinned memory). Host placement frees device memory and
    makes each update slower; the results are the same."""
    rounding: str = "nearest"
    """Rounding of updates to bfloat16 parameters: nearest, or stochastic, which keeps small updates. Use nearest for
    float32 parameters (policy.param_dtype), which are master weights."""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Input of `tools/plan.py`; a run does not read it."""

    slice: str = ""
    """Name of an accelerator slice in `mlagent_jax/parallelism/slices.py`. Empty: name it on the command line."""
    model: str = ""
    """Path of a `config.json` (or its folder) that describes a policy whose `policy.checkpoint` does not exist yet."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Vocabulary of a policy from scratch; a checkpoint brings its own."""

    vocab_size: int = 1024
    """Number of tokens, special tokens included."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Rendering of states as prompts."""

    profile: str = "compact"
    """Grammar of replies: compact (Action and Action Input), or full (MLAgentBench's six labels)."""
    max_prompt_tokens: int = 320
    """Maximum tokens per prompt. Longer prompts drop their oldest steps first."""
    max_action_tokens: int = 96
    """Maximum tokens per action. A longer action is cut and counts as invalid."""
    history_steps: int = 3
    """Number of past steps shown."""
    editor: str = ""
    """Name of the language model behind `Edit Script (AI)` and `Understand File` (profile full). Only workers with the
    same $MLAGENT_EDITOR_MODEL run such jobs. Empty: the two actions are not offered."""


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Training and evaluation tasks."""

    train: tuple[str, ...] = ()
    """Training tasks: names of embedded tasks, or folders."""
    held_out: tuple[str, ...] = ()
    """Held-out tasks, never trained on: names of embedded tasks, or folders."""
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


@dataclasses.dataclass(frozen=True)
class IdeasConfig:
    """Ideas that enrich an expert's prompts."""

    source: str = "library"
    """Source of the ideas: library (built in), or endpoint (generated by the language model of `endpoint`)."""
    keep: int = 0
    """Number of most diverse ideas kept per task; the paper keeps 10. 0: the whole library."""
    candidates: int = 100
    """Number of distinct ideas requested from a language model. The library has at least 100 for each embedded task."""
    embedder: str = "tfidf"
    """Embedding that measures diversity: tfidf (offline), or endpoint (`embedding_model` of `endpoint`)."""
    embedding_model: str = ""
    """Name of the embedding model at the endpoint."""


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Collection of expert trajectories from prompts enriched with ideas."""

    expert: str = "scripted"
    """Source of the trajectories: scripted; endpoint (the language model of `endpoint`); or policy (`policy.checkpoint`
    itself)."""
    trajectories: int = 4
    """Trajectories per training task."""
    steps: int = 5
    """Maximum steps per trajectory."""
    enriched: bool = True
    """Whether training trajectories start from prompts with ideas. False is a control: prompts are plain, and the
    scripted expert prefers a few ideas."""
    min_ideas: int = 1
    """Minimum number of ideas in a trajectory's prompt."""
    max_ideas: int = 3
    """Maximum number of ideas in a trajectory's prompt."""
    error_rate: float = 0.12
    """Fraction of the scripted expert's edits with a deliberate error, so that the data teaches recovery."""
    look_rate: float = 0.08
    """Fraction of steps that change nothing (run, list, inspect)."""


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on the action tokens of expert steps."""

    epochs: int = 8
    """Number of passes over the steps."""
    renderings: int = 1
    """Number of prompts rendered from each step per epoch."""
    idea_rate: float = 0.3
    """Fraction of prompts with their trajectory's ideas. Below 1, because the policy later acts without ideas."""
    batch_size: int = 16
    """Rows per optimizer step."""
    micro_batch: int = 0
    """Rows per forward and backward pass, a divisor of `batch_size`. 0: the whole batch. Gradients accumulate exactly.
    """
    packing: bool = True
    """Whether rows hold several samples, without attention across samples. False: one sample per row, padded to the
    longest of the batch."""
    row_tokens: int = 512
    """Maximum tokens per row."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    warmup_fraction: float = 0.0
    """Fraction of the steps in which the learning rate rises linearly from 0."""
    schedule: str = "cosine"
    """Learning-rate schedule after the warm-up: cosine or constant."""
    weight_decay: float = 0.0
    """Coefficient of decoupled weight decay, as in AdamW."""
    optimizer: str = "adamw"
    """Optimizer: adamw or muon."""
    max_grad_norm: float = 1.0
    """Maximum global gradient norm; larger gradients are scaled down to it."""
    held_out_fraction: float = 0.0
    """Fraction of each training task's trajectories used for evaluation and not for training. 0: none."""
    evaluate_every: int = 0
    """Steps between evaluations on the held-out trajectories. 0: once per epoch."""
    patience: int = 0
    """Number of consecutive evaluations without a lower loss after which training stops and keeps the policy with the
    lowest loss. 0: train all epochs and keep the last policy."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints, in seconds."""


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Filters on the recorded steps that sft imitates."""

    outcomes: tuple[str, ...] = ("scored", "no_edit")
    """Outcome kinds that are imitated. Deliberate errors never are."""
    min_gain: float = -1000.0
    """Minimum improvement of the metric, as a fraction of the distance from the starting script to the best known
    score. Steps without a score pass."""
    max_characters: int = 0
    """Maximum length of prompt plus action, in characters. 0: no limit."""
    duplicates: bool = True
    """Whether the same action in the same state (ideas ignored) may occur more than once. False: only the first is
    kept."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Sampling of actions in rl and evaluate. Behaviour and trainer log-probs use the same temperature."""

    temperature: float = 1.0
    """Divisor of the logits. 0: greedy, only without the stage rl."""
    top_k: int = 0
    """Number of most likely tokens sampled from. 0: all."""
    top_p: float = 1.0
    """Probability mass of the smallest token set sampled from. 1: all."""
    slots: int = 32
    """Number of sequences decoded concurrently."""
    rules: str = ""
    """Changed rows of the sampler's sharding table (docs/memory.md), in the syntax of `mesh.rules`, for example
    `heads=tensor,kv_heads=tensor`. By default weights are sharded over all devices that divide them, and slots over the
    devices left by the heads."""


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Step-wise PPO (arXiv 2505.23723)."""

    iterations: int = 40
    """Number of iterations; each samples, executes and trains on one batch."""
    rollout: str = "step"
    """Unit of sampling: step (one action per pool state; step-wise RL), or episode (whole episodes from the tasks'
    initial states, each action trained on the episode's result; the episode-wise baseline, synchronous)."""
    episode_steps: int = 4
    """Maximum steps per episode, if `rollout` is episode."""
    states: int = 12
    """Number of states drawn from the pool per iteration."""
    samples: int = 4
    """Number of actions sampled per state."""
    reward: str = "improvement"
    """Reward, NAME or NAME:PARAMETER=VALUE: improvement, paper_v1, paper_v2, noise (a control), or a registered one
    (docs/add_a_reward.md), for example `improvement:neutral=0.2`. `python -m environments rewards` lists them."""
    estimator: str = "gae"
    """Advantage estimator, NAME or NAME:PARAMETER=VALUE,...: gae, grpo, rloo, opo, reinforce_plus_plus,
    reinforce_plus_plus_baseline, single_stream, or a registered one (docs/algorithms.md)."""
    normalisation: str = "auto"
    """Scaling of the advantages: none, group (by the standard deviation of a state's rewards), batch (to mean 0 and
    variance 1 over the batch's tokens), or auto (as published with the estimator)."""
    best_of: int = 1
    """Number k of actions in the best-of-k objective, at most `samples`. Above 1, an action's reward is its
    contribution to the best of k from its state."""
    best_of_weight: float = 1.0
    """Weight of the best-of-k term in the objective; the mean reward gets 1 - weight. Only the mean reward punishes a
    failure whose group also has a success."""
    loss: str = "ppo_clip"
    """Policy loss, NAME or NAME:PARAMETER=VALUE,...: ppo_clip, gspo, cispo, dppo, sapo, or a registered one."""
    corrections: str = "truncate_tokens:limit=5"
    """Off-policy corrections, joined by `+`: none, truncate_tokens, truncate_sequences, mask_tokens, mask_geometric,
    mask_outliers, or registered ones."""
    aggregation: str = "token"
    """Averaging of the loss: token, sequence, or constant (each action's sum divided by `prompt.max_action_tokens`)."""
    epochs: int = 2
    """Number of passes over a batch."""
    minibatches: int = 2
    """Optimizer steps per epoch."""
    learning_rate: float = 1e-6
    """Learning rate of the policy, constant."""
    critic: str = "head"
    """Critic: head (a value head on the policy's backbone), or separate (its own backbone, initialised from the SFT
    policy, which needs as much memory as the policy)."""
    critic_learning_rate: float = 1e-3
    """Learning rate of the value head, or of the whole separate critic (then use about the policy's)."""
    critic_warmup: int = 0
    """Number of first iterations that train the critic only."""
    critic_pretraining: int = 0
    """Number of passes over the expert's steps and rewards that train the critic before the first iteration."""
    max_grad_norm: float = 1.0
    """Maximum global gradient norm; larger gradients are scaled down to it."""
    micro_batch: int = 0
    """Rows per forward and backward pass, a divisor of a mini-batch. 0: the whole mini-batch. Gradients accumulate
    exactly."""
    micro_tokens: int = 0
    """Tokens per forward and backward pass, padding included; replaces `micro_batch`. 0: use `micro_batch`."""
    duration_weighting: bool = False
    """Whether actions are weighted in the policy gradient by their execution seconds (arXiv 2509.01684)."""
    value_clip: float = 0.2
    """Maximum change of a value from its old value within a batch."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    kl_coefficient: float = 0.01
    """Weight of the KL to the SFT policy, in the loss or the reward."""
    kl_in: str = "loss"
    """Place of the KL to the SFT policy: loss, or reward (per token, before advantages)."""
    kl_estimator: str = "k3"
    """Per-token estimator of the KL: k1 (in the reward only), k2, k3, or unbiased (k3 times the importance weight; its
    gradient is that of the KL for stale samples, too)."""
    kl_controller: str = "fixed"
    """Controller of `kl_coefficient`: fixed, adaptive:target=NATS, or a registered one."""
    reference_every: int = 0
    """Iterations between replacements of the KL's reference by the current policy. 0: the SFT policy stays the
    reference. Above 0 the reference is a copy of the trained parameters."""
    max_kl: float = 10.0
    """Maximum KL to the reference, in nats per token. Above it the run saves the batch and stops."""
    silent_groups: str = "keep"
    """Treatment of groups with equal rewards: keep, drop (from training), or resample (replace with other states;
    DAPO's dynamic sampling, synchronous)."""
    resample_executions: int = 64
    """Maximum executions per iteration for replacement states, if `silent_groups` is resample."""
    max_staleness: int = 1
    """Maximum policy versions between sampling and training. 0: synchronous, every action comes from the current
    version."""
    sample_ahead: bool = True
    """Whether the next batch is sampled concurrently with the current one's executions and update, in one process, if
    `max_staleness` is above 0. This needs device memory for a copy of the weights in the compute dtype and for the
    sampler's cache."""
    straggler_seconds: float = 0.0
    """Time that a batch waits for its oldest states, in seconds, before younger ones replace them. Stragglers are
    trained on later, within `max_staleness`, which reserves one version for them. 0: no limit."""
    checkpoint_every: int = 1
    """Iterations between checkpoints."""
    keep_every: int = 0
    """Period of the checkpoints that are kept, in iterations, so that `evaluate.policies` can name them (`rl@8`). 0:
    keep only the last two."""
    save_batches: bool = False
    """Whether each iteration's batch is written to `batches/` in the workdir before training."""
    replay: str = ""
    """Path of a saved batch. Every iteration trains on it, without sampling or executing."""

    MOVED: ClassVar[dict[str, str]] = {
        "clip": "config.rl.loss=ppo_clip:low=VALUE",
        "clip_high": "config.rl.loss=ppo_clip:high=VALUE",
        "dual_clip": "config.rl.loss=ppo_clip:dual=VALUE",
        "gamma": "config.rl.estimator=gae:gamma=VALUE",
        "gae_lambda": "config.rl.estimator=gae:lam=VALUE,critic_lam=VALUE",
        "kl_target": "config.rl.kl_controller=adaptive:target=VALUE",
        "max_importance_weight": "config.rl.corrections=truncate_tokens:limit=VALUE",
    }
    """Removed fields, and the parameters that replace them."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Validation during rl: the policy acts in the same states with the same random draws each time."""

    every: int = 0
    """Iterations between validations. 0: none."""
    split: str = "held_in"
    """Tasks of the validation states: held_in or held_out."""
    states: int = 16
    """Number of fixed states, one of each task and depth before a second."""
    samples: int = 1
    """Actions per state."""
    metric: str = "reward"
    """Mean over all actions that ranks policies: reward, or valid (the fraction of valid actions)."""
    keep_best: bool = False
    """Whether the stage's policy is the one with the best validation instead of the last."""
    patience: int = 0
    """Number of consecutive validations without improvement after which training stops. 0: never."""


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """State pool of rl."""

    trajectories: str = ""
    """Trajectories of another run's workdir. Empty: this run's."""
    max_depth: int = 4
    """Maximum steps of history per state."""
    sampling: str = "uniform"
    """Distribution within a task and depth (which are balanced): uniform, or learnability (prefers states with more
    varied rewards)."""
    refresh_fraction: float = 0.0
    """Fraction of a batch's states drawn from states that the policy itself reached."""
    refresh_size: int = 256
    """Maximum number of states that the policy reached; the oldest are dropped."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on fixed states (one action) and episodes, held-in and held-out."""

    policies: tuple[str, ...] = ("base", "sft", "rl")
    """Agents to evaluate, if they exist and have no results yet: base, sft, rl (of this run), rl@ITERATION (see
    `rl.keep_every`), expert (scripted), nothing (changes nothing), [NAME=]hf:FOLDER (a checkpoint) and [NAME=]endpoint
    (config.endpoint)."""
    reward: str = "improvement"
    """Reward that is reported, independent of the one trained on; see `rl.reward`."""
    states_held_in: int = 48
    """Number of fixed states of training tasks, for policies. 0: none."""
    states_held_out: int = 48
    """Number of fixed states of held-out tasks, for policies. 0: none."""
    samples: int = 4
    """Actions per fixed state."""
    episode_tasks_held_in: int = 6
    """Number of training tasks with episodes, the first ones of tasks.train."""
    episode_tasks_held_out: int = 4
    """Number of held-out tasks with episodes, the first ones of tasks.held_out."""
    trajectories: int = 3
    """Episodes per task."""
    best_of: int = 3
    """k of the reported best@k, estimated without bias from all trajectories of a task."""
    steps: int = 4
    """Maximum steps per episode."""
    minutes: float = 30.0
    """Time limit of an episode's replies and scripts, in minutes; no step starts after it."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Exported Hugging Face folder."""

    policy: str = "rl"
    """Policy to export: sft or rl."""
    layout: str = "merged"
    """Layout of the folder: merged (a whole checkpoint, adapters added to the weights), or peft (only the adapters, in
    PEFT's format)."""
    dtype: str = "float32"
    """Dtype of the files: float32, bfloat16 or float16."""
    max_shard_mb: int = 4096
    """Maximum size of a weight file, in MB."""


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Metric trackers in addition to `metrics.jsonl` and TensorBoard, which are always written."""

    trackers: tuple[str, ...] = ()
    """Trackers: wandb, mlflow. Their environment variables ($WANDB_API_KEY, $MLFLOW_TRACKING_URI) apply as usual."""
    project: str = "mlagent-jax"
    """Name of the project (wandb) or experiment (mlflow)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    stages: tuple[str, ...] = STAGES
    """Stages in order. A stage may come twice, for example evaluate before and after rl."""
    seed: int = 0
    """Seed of all randomness except the tasks' data."""
    plugins: tuple[str, ...] = ()
    """Python files (paths that end in .py) and modules that register your own functions when imported. Workers on other
    hosts read them from $MLAGENT_PLUGINS."""
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
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


_PACE = ("url", "concurrency", "attempts", "backoff_seconds", "timeout_seconds", "key_variable")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "budget_tokens", "budget_cost")
MAY_CHANGE = (
    *("stages", "workers", "mesh", "plan", "sampling.slots", "optimizer.placement", "tracking", "plugins"),
    *(f"endpoint.{name}" for name in (*_PACE, *_LIMITS)),
)
"""Settings that may change when a workdir is reopened: they decide where and how fast a run computes, not its results.
"""


def default_config() -> ConfigDict:
    """Return all fields at their defaults; config files change what they need."""
    return ConfigDict(dataclasses.asdict(Config()))


def freeze(config: ConfigDict) -> Config:
    """Return the typed, checked form.

    Raises:
      ConfigError: An unknown field (the nearest is named), a wrong type or an impossible value.
    """
    frozen = typed_fields.read(Config, config.to_dict(), "config")
    check(frozen)
    return frozen


def differences(stored: dict[str, Any], config: Config) -> list[str]:
    """List fields that differ between a workdir's stored config and this one, except `MAY_CHANGE`: `name: stored ->
    new`."""
    new, changed = dataclasses.asdict(config), []

    def walk(old: Any, now: Any, default: Any, path: str) -> None:
        if path in MAY_CHANGE:
            return
        if isinstance(old, dict) and isinstance(now, dict):
            old = default | old  # a workdir older than a field has its default
            for name in sorted({*old, *now}):
                walk(old.get(name), now.get(name), default.get(name, {}), f"{path}.{name}" if path else name)
        elif _plain(old) != _plain(now):
            changed.append(f"{path}: {old!r} -> {now!r}")

    walk(stored, new, dataclasses.asdict(Config()), "")
    return changed


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_field(path: str) -> Any:
    """Return the type of the field with this name, for example `rl.loss`.

    Raises:
      ConfigError: There is no such field; the message names the nearest.
    """
    return typed_fields.find(Config, path, "config")
