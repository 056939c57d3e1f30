"""What a machine does with the programs of a run: the measurements of `tools/qualify.py`, each with its bound.

A measurement runs the program that a stage runs, on random weights of the asked shape, and says beside it what the
devices could do at best: operations over their peak rate, bytes over their memory bandwidth, the plan's bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax import models
from mlagent_jax.models import flops, precision
from mlagent_jax.parallelism.slices import peak_flops
from mlagent_jax.settings.schema import Config
from tools.planning import blueprint, memory, programs

REPEATS = 3
PARITY_LAYERS, PARITY_VOCABULARY, PARITY_TOKENS = 2, 1024, 96
"""The model of the parity check: the asked one's layers, so few that a CPU computes them in seconds."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
      part: What was measured.
      value, unit: The measurement.
      bound: What it is compared with, in the same unit; None: nothing is known.
      verdict: ok, slow, fail, unknown or skipped.
      note: What the comparison is, or why there is none.
    """

    part: str
    value: float | None
    unit: str
    bound: float | None
    verdict: str
    note: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of this process and what they reach.

    Attributes:
      peak: Operations a second of one device: the vendor's figure, or as measured where it is unknown.
      product: Operations a second of a large matrix product on one device.
      bandwidth: Bytes a second that one device reads and writes of a large array.
    """

    kind: str
    count: int
    peak: float
    product: float
    bandwidth: float


def look(dtype: str) -> Machine:
    """Measure the devices themselves, in the compute dtype."""
    device = jax.devices()[0]
    small = jax.default_backend() == "cpu"
    size = 1536 if small else 8192
    left = jnp.ones((size, size), dtype)
    product = 2 * size**3 / _best(lambda: _multiply(left, left))
    large = jnp.ones(2**24 if small else 2**28, jnp.float32)
    bandwidth = 2 * large.nbytes / _best(lambda: _increase(large))
    return Machine(
        device.device_kind, jax.device_count(), peak_flops(device.device_kind) or product, product, bandwidth
    )


@jax.jit
def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    return left @ right


@jax.jit
def _increase(array: jax.Array) -> jax.Array:
    return array + 1


def _best(work: Callable[[], Any]) -> float:
    """Return the fewest seconds of a few runs, after one that compiles."""
    jax.block_until_ready(work())
    return min(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def devices(machine: Machine) -> Iterator[Line]:
    """Compare the devices with their vendor's figures."""
    known = peak_flops(machine.kind)
    verdict = "unknown" if not known else "ok" if machine.product >= 0.6 * known else "slow"
    note = "a large matrix product beside the vendor's peak" if known else "the vendor's peak is not in slices.py"
    yield Line("matrix product", machine.product / 1e12, "TFLOP/s", known / 1e12 or None, verdict, note)
    yield Line("memory bandwidth", machine.bandwidth / 1e9, "GB/s", None, "unknown", "read and written, one device")


def parity(config: Config, model: models.ModelConfig) -> Iterator[Line]:
    """Compare log-probs of two layers of the model with transformers' on the CPU in float32."""
    import torch
    import transformers

    from mlagent_jax.checkpoints import hugging_face

    transformers.utils.logging.disable_progress_bar()
    policy = config.policy
    shape = dataclasses.replace(model, num_layers=PARITY_LAYERS, vocab_size=PARITY_VOCABULARY, dtype="float32")
    graph, params = models.create(shape, jax.random.key(0), attention=policy.attention)
    tokens = np.random.default_rng(0).integers(0, PARITY_VOCABULARY, (2, PARITY_TOKENS), dtype=np.int32)

    @jax.jit
    def ours(params: Any, tokens: jax.Array) -> jax.Array:
        hidden = models.hidden_states(
            *(graph, params, tokens),
            lengths=jnp.full(len(tokens), tokens.shape[1]),
            compute_dtype=jnp.dtype(policy.compute_dtype),
        )
        return models.token_log_probs(graph, params, hidden[:, :-1], tokens[:, 1:])[0]

    with precision.in_effect(policy):
        found = np.asarray(ours(params, jnp.asarray(tokens)))
    with tempfile.TemporaryDirectory() as folder:
        hugging_face.save(Path(folder) / "model", shape, params)
        reference = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    with torch.no_grad():
        logits = reference.eval()(torch.tensor(tokens, dtype=torch.long)).logits.log_softmax(-1)
    chosen = torch.tensor(tokens[:, 1:, None], dtype=torch.long)
    expected = logits[:, :-1].gather(-1, chosen)[..., 0].numpy()
    gap = float(np.abs(found - expected).mean())
    allowed = precision.tolerance(policy.matmul_precision, policy.compute_dtype, jax.default_backend())
    note = f"mean difference of log-probs from transformers in float32, attention {graph.attention}"
    yield Line("parity", gap, "nats a token", allowed, "ok" if gap <= allowed else "fail", note)


class Programs:
    """The programs of a config, with random arrays for their arguments.

    Args:
      config: Sizes and dtypes.
      model: Shape of the policy.
      machine: Devices.
    """

    def __init__(self, config: Config, model: models.ModelConfig, machine: Machine, mesh: jax.sharding.Mesh) -> None:
        self._config, self._model, self._machine = config, model, machine
        self._drawn = blueprint.draw(config, model, mesh, jax.default_backend())

    def update(self, name: str, part: str, operations: float) -> Iterator[Line]:
        """Time one optimizer step: `sft_step` or `ppo_step`, which take and return parameters and state.

        Args:
          name: Of the program.
          part: Name of the measurement.
          operations: Operations that the step needs.
        """
        program = programs.make(name, self._drawn)
        params, state, *rest = program.arguments
        params, state, rest = _filled(params), _filled(state, 0.0), _filled(rest)
        static = program.static | {"base": _filled(program.static["base"])}
        seconds = []
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            params, state, metrics = program.step(params, state, *rest, **static)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
        rate = operations / statistics.median(seconds[1:])
        share = rate / (self._machine.peak * self._machine.count)
        note = f"of peak; {program.shape}; compiled in {seconds[0] - seconds[-1]:.0f} s"
        yield Line(part, share, "utilisation", 1.0, "ok" if share >= 0.3 else "slow", note)
        yield from self._memory(program)

    def _memory(self, program: programs.Program) -> Iterator[Line]:
        """Compare the memory of a step with the plan of its phase."""
        phase = {"sft_step": "sft step", "ppo_step": "rl update"}[program.name]
        planned = next(each.total for each in memory.phases(self._drawn) if each.name == phase) / 2**30
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            used, what = stats["peak_bytes_in_use"] / 2**30, "most in use on a device so far"
        else:
            of = program.step.lower(*program.arguments, **program.static).compile().memory_analysis()
            new = of.output_size_in_bytes - of.alias_size_in_bytes
            used = (of.argument_size_in_bytes + of.temp_size_in_bytes + new) / 2**30
            what = "of the compiled program"
        yield Line(
            f"memory, {phase}", used, "GiB", planned, "ok" if used <= 1.1 * planned else "slow", f"{what}; the plan"
        )

    def sft(self) -> Iterator[Line]:
        """Time the step of sft on rows full of tokens."""
        rows, time_ = self._config.sft.batch_size, self._config.sft.row_tokens
        one = flops.forward(self._model, rows * time_, rows * time_ * (time_ + 1) / 2, rows * time_)
        yield from self.update("sft_step", "sft step", self._passes * one)

    def rl(self) -> Iterator[Line]:
        """Time the step of rl on the longest prompts, each with all of its actions."""
        rl, prompt = self._config.rl, self._config.prompt
        p, a, states = prompt.max_prompt_tokens, prompt.max_action_tokens, rl.states // rl.minibatches
        pairs = states * (p * (p + 1) / 2 + rl.samples * (a * p + a * (a + 1) / 2))
        tokens, predicted = states * (p + rl.samples * a), states * rl.samples * a
        yield from self.update(
            "ppo_step", "rl step", self._passes * flops.forward(self._model, tokens, pairs, predicted)
        )

    @property
    def _passes(self) -> int:
        return flops.TRAINING if self._drawn.adapters is None else flops.TRAINING_ADAPTERS

    def sampling(self) -> Iterator[Line]:
        """Time the hand-over of weights to the sampler, prefill and decoding, by the engine itself."""
        from mlagent_jax.sampling import Batch, Request, SamplerConfig
        from mlagent_jax.sampling.weights import Preparation

        config, model, machine = self._config, self._model, self._machine
        slots, p, a = config.sampling.slots, config.prompt.max_prompt_tokens, config.prompt.max_action_tokens
        graph, params = self._drawn.sampling_graph, _filled(self._drawn.whole)
        dtype = config.policy.compute_dtype
        prepare = Preparation(dtype, graph=graph if graph is not self._drawn.graph else None)
        jax.block_until_ready(prepare(params).params)
        prepare.release()
        seconds = _seconds(lambda: prepare(params).params)
        moved, weights = prepare.moved_bytes, prepare(params)
        bound = 2 * moved / (machine.bandwidth * machine.count)
        verdict = "ok" if seconds <= max(1.0, 5 * bound) else "slow"
        yield Line("weights to sampler", seconds, "s", bound, verdict, f"{moved / 2**20:.0f} MiB cast, cut or laid out")

        settings = SamplerConfig(max_new_tokens=a, slots=slots, compute_dtype=dtype)
        rng, timed = np.random.default_rng(0), _Timed()
        for number in range(2):  # the first compiles
            timed.seconds.clear()
            batch = Batch(graph, settings, weights, p, run=timed)
            prompts = [tuple(rng.integers(0, model.vocab_size, p).tolist()) for _ in range(slots)]
            batch.submit([Request(place, each, a, number, 0) for place, each in enumerate(prompts)])
            while batch.busy:
                batch.step()
        prefill = sum(value for name, value in timed.seconds.items() if name.startswith("prefill"))
        operations = flops.forward(model, slots * p, slots * p * (p + 1) / 2, slots)
        bound = operations / (machine.peak * machine.count)
        yield _beside("prefill", prefill, bound, 0.3, f"{slots} prompts of {p} tokens, beside their operations at peak")
        size = jnp.dtype(dtype).itemsize
        read = sum(leaf.size for leaf in jax.tree.leaves(weights.params)) * size
        if not model.tie_word_embeddings:  # of the embedding only some rows are read
            read -= model.vocab_size * model.hidden_size * size
        read += slots * (p + a / 2) * 2 * model.num_layers * model.num_kv_heads * model.head_dim * size
        note = f"a token of {slots} slots, beside weights and cache at the measured bandwidth"
        yield _beside("decode", timed.seconds["decode"] / a, read / (machine.bandwidth * machine.count), 0.4, note)


def _beside(part: str, seconds: float, bound: float, least: float, note: str) -> Line:
    return Line(part, seconds, "s", bound, "ok" if bound >= least * seconds else "slow", note)


class _Timed:
    """Runs the sampler's programs one by one, and adds up their seconds by name; takes the place of `FirstRuns`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, key: tuple[object, ...], program: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = jax.block_until_ready(program(*arguments))
        name = str(key[0])
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return result


def _filled(tree: Any, scale: float = 0.02) -> Any:
    """Return arrays for abstract ones: random floats of this size, ones for numbers, true for masks; all else as it
    is."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return _maker(leaf.shape, leaf.dtype, leaf.sharding)(scale)

    return jax.tree.map(one, tree)


@functools.cache
def _maker(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[float], jax.Array]:
    def make(scale: float) -> jax.Array:
        if not jnp.issubdtype(dtype, jnp.floating):
            return jnp.ones(shape, dtype)
        return (scale * jax.random.normal(jax.random.key(0), shape)).astype(dtype)

    return jax.jit(make, out_shardings=sharding)
