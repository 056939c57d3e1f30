"""Tokens a second and model FLOP utilisation of the SFT step of a config, beside transformers and PyTorch (and PEFT,
where the config has adapters).

    python tools/bench/bench_train_step.py --config=configs/quickstart.py --config.policy.compute_dtype=float32
    python tools/bench/bench_train_step.py --config=configs/smollm2.py --config.policy.compute_dtype=float32
    python tools/bench/bench_train_step.py --config=configs/rl_7b_h200_1.py --config.sft.batch_size=4 --against=none

On a CPU, set GLIBC_TUNABLES=glibc.malloc.hugetlb=1 as launch/quickstart.sh does, and compare within one run.
Both sides take the same optimizer step (AdamW behind a clip of the gradient norm) on the same model with random weights
and the same batch, on all devices of this machine (PyTorch on one). One line of JSON a measurement; the median of
`--steps` steps after two that are not counted; `cpu_seconds_a_step` says more where a CPU is busy with other things.
Utilisation is the operations that the model needs, those that rematerialisation repeats not among them, over what the
devices could do in that time: `--peak_tflops` a device, by default what a product of two large matrices reaches here in
the compute dtype.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from absl import flags
from ml_collections import config_flags

from mlagent_jax.settings.flags import run_program

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, for example configs/quickstart.py.")
STEPS = flags.DEFINE_integer("steps", 5, "Steps that are timed.", lower_bound=1)
PEAK = flags.DEFINE_float("peak_tflops", 0.0, "What a device can do, in 1e12 operations a second; 0: measured.")
AGAINST = flags.DEFINE_enum("against", "pytorch", ["pytorch", "none"], "What to compare with.")
_WARM_UP = 2
_LEARNING_RATE = 1e-4
_MODULES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "head": "lm_head"}
"""Linear maps by their names in transformers; the others end in `_proj` alone."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step is asked to do."""

    config: Any
    model: Any
    tokens: np.ndarray  # int32 [rows, time + 1]

    @property
    def count(self) -> int:
        """Tokens that are predicted."""
        return self.tokens[:, 1:].size


def in_jax(work: Work) -> tuple[Callable[[], float], int]:
    """(one step, operations of a step): the stage's own step, with the parameters on the config's mesh."""
    import jax

    from mlagent_jax import models
    from mlagent_jax.models import lora
    from mlagent_jax.optim.optimizer import init_state, with_learning_rate
    from mlagent_jax.parallelism import make_mesh
    from mlagent_jax.sft.step import sft_step
    from tools.planning import blueprint, flops, programs

    mesh = make_mesh(work.config.mesh.shape)
    jax.set_mesh(mesh)
    drawn = blueprint.draw(work.config, work.model, mesh, jax.default_backend())
    policy = work.config.policy
    _, base = models.create(
        work.model,
        jax.random.key(0),
        dtype=np.dtype(policy.param_dtype),
        mesh=mesh,
        rules=drawn.graph.rules,
        attention=policy.attention,
    )
    trained, frozen = base, None
    if drawn.adapters is not None:
        trained, frozen = lora.create(drawn.graph, jax.random.key(1), mesh), base
    program = programs.make("sft_step", drawn)
    state = init_state(drawn.sft_optimizer, trained, work.config.optimizer.placement)
    held = {"params": trained, "state": with_learning_rate(state, _LEARNING_RATE)}
    rows, span = work.tokens[:, :-1].shape
    packed = {
        "tokens": work.tokens[:, :-1],
        "targets": work.tokens[:, 1:],
        "segment_ids": np.ones((rows, span), np.int32),
        "positions": np.broadcast_to(np.arange(span, dtype=np.int32), (rows, span)),
        "mask": np.ones((rows, span), bool),
    }
    batch = {name: jax.device_put(array, program.arguments[2][name].sharding) for name, array in packed.items()}
    static = program.static | {"base": frozen}

    def step() -> float:
        held["params"], held["state"], metrics = sft_step(held["params"], held["state"], batch, **static)
        return float(metrics["loss"])

    # Without what is made again, and with an attention whose products are to be seen.
    plain = dataclasses.replace(drawn.graph, attention="xla")
    traced = sft_step.trace(*program.arguments, **(program.static | {"remat": "none", "graph": plain}))
    return step, flops.count(traced.jaxpr)


def in_pytorch(work: Work) -> Callable[[], float]:
    """One step of transformers' model of the same shape, in PyTorch on its own default device for training."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    described = work.model.to_hf()
    kind = described.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **described), attn_implementation="sdpa")
    model = model.to(device=device, dtype=getattr(torch, work.config.policy.param_dtype)).train()
    if work.config.lora.rank:
        import peft

        lora = work.config.lora
        targets = [_MODULES.get(name, f"{name}_proj") for name in lora.targets]
        model = peft.get_peft_model(model, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))
    if work.config.policy.remat != "none":
        model.gradient_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    tokens = torch.tensor(work.tokens, dtype=torch.long, device=device)
    wide = work.config.policy.compute_dtype == "float32"
    rows = work.config.sft.micro_batch or len(tokens)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in tokens.split(rows):
            with torch.autocast(device, torch.bfloat16, enabled=not wide):
                logits = model(part[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"
            )
            (loss / work.count).backward()
            total += loss.item() / work.count
        torch.nn.utils.clip_grad_norm_(trained, work.config.sft.max_grad_norm)
        optimizer.step()
        return total

    return step


def median_seconds(step: Callable[[], float], steps: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of a step, after the first ones."""
    seconds, of_cpu = [], []
    for index in range(_WARM_UP + steps):
        started, cpu = time.perf_counter(), time.process_time()
        loss = step()
        if not np.isfinite(loss):
            raise RuntimeError(f"step {index} has the loss {loss}")
        seconds.append(time.perf_counter() - started)
        of_cpu.append(time.process_time() - cpu)
    return statistics.median(seconds[_WARM_UP:]), statistics.median(of_cpu[_WARM_UP:])


def measured_peak(dtype: str) -> float:
    """Operations a second that a product of two large matrices reaches on one device."""
    import jax
    import jax.numpy as jnp

    size = 8192 if jax.default_backend() != "cpu" else 1536
    left = jnp.ones((size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a, b: a @ b)
    product(left, left).block_until_ready()
    return 2 * size**3 / min(_timed(lambda: product(left, left).block_until_ready()) for _ in range(5))


def _timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure() -> None:
    """Print all measurements.

    Raises:
      ConfigError: a setting is impossible, or the model's shape cannot be read.
    """
    import jax

    from mlagent_jax.settings.schema import freeze
    from tools.planning.blueprint import read_model

    config = freeze(CONFIG.value)
    config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, optimizer="adamw"))  # what both have
    model = read_model(config)
    shape = (config.sft.batch_size, config.sft.row_tokens + 1)
    work = Work(config, model, np.random.default_rng(0).integers(0, model.vocab_size, shape, dtype=np.int32))
    policy = config.policy
    peak = PEAK.value * 1e12 or measured_peak(policy.compute_dtype)
    step, operations = in_jax(work)
    seconds, cpu = median_seconds(step, STEPS.value)
    del step
    facts = {
        "rows": shape[0],
        "row_tokens": shape[1] - 1,
        "compute_dtype": policy.compute_dtype,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "peak_tflops_a_device": round(peak / 1e12, 3),
    }
    _print("jax", seconds, cpu, work.count, operations / (seconds * peak * jax.device_count()), facts)
    if AGAINST.value == "pytorch":
        seconds, cpu = median_seconds(in_pytorch(work), STEPS.value)
        what = "transformers + pytorch" + " + peft" * bool(config.lora.rank)
        _print(what, seconds, cpu, work.count, operations / (seconds * peak), facts | {"devices": 1})


def _print(what: str, seconds: float, cpu: float, tokens: int, utilisation: float, facts: dict[str, Any]) -> None:
    figures = {
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_a_step": round(seconds, 4),
        "cpu_seconds_a_step": round(cpu, 4),
        "model_flop_utilisation": round(utilisation, 4),
    }
    print(json.dumps({"what": what, **figures, **facts}), flush=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    run_program(measure)
