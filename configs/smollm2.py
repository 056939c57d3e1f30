"""The whole method with a pretrained model of 135 million parameters: SmolLM2-135M-Instruct, on two cores or one GPU.

    ./launch/pretrained.sh [--full]                                      # fetches the model, then runs this
    python -m mlagent_jax.train --config=configs/smollm2.py --workdir=runs/smollm2        # where the hub is reached
    python -m mlagent_jax.train --config=configs/smollm2.py:full --workdir=runs/smollm2   # no adapters

It differs from configs/rl.py in size: one step costs as much as the model has parameters times tokens, so that short
prompts and few steps are what two cores do in four hours (docs/pretrained.md has the budget).
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base_paper


def get_config(training: str = "lora") -> ConfigDict:
    """Return the settings; `training` is `lora` (adapters) or `full` (every parameter)."""
    if training not in ("lora", "full"):
        raise ValueError(
            f"{training!r} is no way of training: write configs/smollm2.py:lora or configs/smollm2.py:full"
        )
    config = base_paper.get_config()
    config.stages = ("collect", "sft", "evaluate", "rl", "evaluate", "export")
    config.policy.checkpoint = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.policy.compute_dtype = compute_dtype()
    config.policy.remat = "none"
    config.lora.rank = 16 if training == "lora" else 0

    # Problem, script, last results and format in about 450 tokens; a whole rewritten script is the longest action.
    config.prompt.profile = "medium"
    config.prompt.max_prompt_tokens = 700
    config.prompt.max_action_tokens = 224
    config.prompt.history_steps = 2

    config.collect.trajectories = 12
    config.collect.steps = 4
    # A learning rate of LoRA is about ten times that of full fine-tuning (Hu et al. 2021; Schulman 2025).
    config.sft.learning_rate = 4e-4 if training == "lora" else 4e-5
    config.sft.warmup_fraction = 0.05
    config.sft.epochs = 1
    config.sft.batch_size = 4
    config.sft.micro_batch = 1
    config.sft.row_tokens = 1280  # two samples

    config.pool.max_depth = 3
    config.pool.refresh_fraction = 0.5  # states as the policy reaches them, too: the expert's are few
    config.rl.iterations = 20
    config.rl.states = 8
    config.rl.samples = 4
    config.rl.learning_rate = 5e-5 if training == "lora" else 5e-6
    config.rl.minibatches = 2
    config.rl.micro_batch = 1  # the attention of 30 layers is kept for the backward pass
    config.rl.max_staleness = 0  # the same cores sample, execute and update: nothing would be won by overlapping
    config.rl.straggler_seconds = 0.0
    config.sampling.slots = 32

    config.evaluate.states_held_in = 24
    config.evaluate.states_held_out = 20
    config.evaluate.samples = 2
    config.evaluate.trajectories = 2
    config.evaluate.best_of = 2
    config.evaluate.steps = 4
    return config


def compute_dtype() -> str:
    """Return bfloat16 if there is an accelerator or the processor multiplies in it, else float32."""
    has_accelerator = any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*"))
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split() if cpuinfo.exists() else []
    return "bfloat16" if has_accelerator or {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"
