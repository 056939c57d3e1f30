"""How often a sampled token depends on the mesh: the same requests on one device and on meshes of eight simulated ones.

    python tools/bench/mesh_differences.py --checkpoint=runs/quickstart [--meshes=2,2,2 --meshes=8,1,1] [--prompts=32]

A request's draws follow from its seed and position alone; the log-probs that they are compared with differ by rounding
from mesh to mesh, so that a token differs where two of them (with their noise) tie within that. Printed, a line of JSON
a mesh (data, fsdp, tensor): `completions`, those that `differ`, `rate` of differences a token (up to the first one of
each completion, after which the two are different texts), and `largest_gap` in nats between the two candidates where
they differ, recomputed on one device.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from absl import app, flags

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
MESHES = flags.DEFINE_multi_string("meshes", ["2,2,2", "8,1,1"], "data,fsdp,tensor of eight devices.")
PROMPTS = flags.DEFINE_integer("prompts", 32, "Of random tokens.", lower_bound=1)
N = flags.DEFINE_integer("n", 4, "Samples a prompt.", lower_bound=1)
TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Of each sample.", lower_bound=1)
LONGEST = 120  # tokens of a prompt


def sample(mesh: Any, prompts: list[list[int]]) -> list[list[int]]:
    import jax

    from mlagent_jax.sampling import SamplerConfig, TokenSampler, load

    with jax.set_mesh(mesh):
        model, _ = load(CHECKPOINT.value, dtype="float32", mesh=mesh)
        config = SamplerConfig(max_new_tokens=TOKENS.value, slots=32, prefill_rows=8)
        found = TokenSampler(model.graph, config).sample(prompts, range(len(prompts)), N.value, params=model.params)
    return [completion.token_ids for completion in found]


def gap(model: Any, prompt: list[int], seed: int, number: int, one: list[int], other: list[int]) -> float:
    """Between the two tokens at the first difference, log-probs and noise together, on one device."""
    import jax
    import jax.numpy as jnp

    from mlagent_jax import models
    from mlagent_jax.sampling.distribution import request_keys

    place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    tokens = jnp.asarray([[*prompt, *one[:place]]], jnp.int32)
    hidden = models.hidden_states(model.graph, model.params, tokens)[:, -1]
    log_probs = jax.nn.log_softmax(models.logits(model.graph, model.params, hidden))[0]
    key = request_keys(*(jnp.asarray([value], jnp.uint32) for value in (seed, 0, number)))[0]
    noise = jax.random.gumbel(jax.random.fold_in(key, tokens.shape[1]), log_probs.shape, log_probs.dtype)
    scores = np.asarray(log_probs + noise)
    return float(abs(scores[one[place]] - scores[other[place]]))


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    import jax

    from mlagent_jax.parallelism import make_mesh
    from mlagent_jax.sampling import load

    model, tokenizer = load(CHECKPOINT.value, dtype="float32")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, tokenizer.vocab_size, rng.integers(1, LONGEST)).tolist() for _ in range(PROMPTS.value)]
    expected = sample(make_mesh({}, jax.devices()[:1]), prompts)
    for shape in MESHES.value:
        axes = dict(zip(("data", "fsdp", "tensor"), map(int, shape.split(",")), strict=True))
        found = sample(make_mesh(axes), prompts)
        gaps, compared = [], 0
        for row, (one, other) in enumerate(zip(expected, found, strict=True)):
            same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
            compared += min(same + 1, len(one))
            if one != other:
                gaps.append(gap(model, prompts[row // N.value], row // N.value, row % N.value, one, other))
        figures = {"completions": len(found), "differ": len(gaps), "tokens": compared, "rate": len(gaps) / compared}
        print(json.dumps({"mesh": shape, **figures, "largest_gap": max(gaps, default=0.0)}), flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)
