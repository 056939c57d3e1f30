"""The sampler: exact against transformers, its own trainer and itself in other company."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax import models
from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.models import cache as cache_module
from mlagent_jax.runtime.compilations import EVENT
from mlagent_jax.sampling import Batch, Distribution, Request, SamplerConfig, TokenSampler
from mlagent_jax.sampling.engine import SlotState

NAMES = (
    *("qwen2", "qwen2-untied-mha-linear", "qwen2-yarn", "qwen3", "qwen3-bias-yarn"),
    *("llama-mqa", "llama-bias-tied"),
)
BUCKETS = (8, 32)
# Of the engine, by the names that their first runs are logged with.
PROGRAMS = {
    "empty": "empty_slots",
    "prefill": "prefill_prompts",
    "prefill-part": "prefill_parts",
    "start": "start_requests",
    "copy": "copy_prompts",
    "decode": "decode",
}
# Two samplers of one distribution, shared by the tests: a program compiles once.
WIDE = SamplerConfig(max_new_tokens=10, slots=8, buckets=BUCKETS, stop_token_ids=tuple(range(1, 12)))
NARROW = dataclasses.replace(WIDE, slots=2, steps_per_call=3, prefill_rows=1)


@pytest.fixture(scope="module")
def model(checkpoint):
    _, graph, params = hugging_face.load(checkpoint("qwen2").folder, dtype=jnp.float32)
    return graph, params


def prompts(count, longest=30, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 97, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_equals_generate_of_transformers(name, checkpoint):
    """One prompt of the six is longer than the largest bucket, and prefilled in parts."""
    import torch

    made = checkpoint(name)
    _, graph, params = hugging_face.load(made.folder, dtype=jnp.float32)
    sampler = TokenSampler(
        graph, SamplerConfig(max_new_tokens=20, distribution=Distribution(0), slots=3, buckets=BUCKETS)
    )
    asked = [*prompts(5), (7 * np.arange(75) % 96 + 1).tolist()]
    for prompt, ours in zip(asked, sampler.sample(asked, range(6), params=params), strict=True):
        made.reference.generation_config.eos_token_id = None
        with torch.no_grad():
            theirs = made.reference.generate(
                torch.tensor([prompt]), max_new_tokens=20, do_sample=False, use_cache=True, pad_token_id=0
            )
        assert ours.token_ids == theirs[0, len(prompt) :].tolist()
        assert ours.finish_reason == "length"


@pytest.mark.slow
def test_log_probs_are_those_the_trainer_recomputes(model):
    graph, params = model
    temperature = 0.7
    sampler = TokenSampler(
        graph,
        SamplerConfig(
            max_new_tokens=12,
            distribution=Distribution(temperature),
            slots=4,
            buckets=BUCKETS,
            stop_token_ids=(7,),
        ),
    )
    asked = prompts(3)
    completions = sampler.sample(asked, [1, 2, 3], 2, params=params)
    width = 48
    rows = [asked[index // 2] + completion.token_ids for index, completion in enumerate(completions)]
    tokens = np.array([row + [0] * (width - len(row)) for row in rows])
    segments = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])

    @jax.jit
    def recompute(params, tokens, segments):
        hidden = models.hidden_states(graph, params, tokens[:, :-1], segment_ids=segments[:, :-1])
        return models.token_log_probs(graph, params, hidden, tokens[:, 1:], temperature=temperature)[0]

    log_probs = np.asarray(recompute(params, tokens, segments))
    for index, completion in enumerate(completions):
        start = len(asked[index // 2]) - 1
        found = log_probs[index, start : start + len(completion.token_ids)]
        np.testing.assert_allclose(completion.log_probs, found, atol=1e-4)
        assert completion.log_probs.dtype == np.float32


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_company_or_its_slot(model):
    graph, params = model
    asked, seeds = prompts(7), [11, 2**40 + 12, 13, 14, 15, 16, 17]
    together = TokenSampler(graph, WIDE).sample(asked, seeds, 3, params=params)
    place = max(range(7), key=lambda index: len(asked[index]))
    alone = TokenSampler(graph, NARROW).sample([asked[place]], [seeds[place]], 3, params=params)
    for one, other in zip(alone, together[place * 3 : place * 3 + 3], strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
    assert len({tuple(completion.token_ids) for completion in together}) > 15, "and each draws for itself"


def test_parts_of_prompts_leave_what_one_prefill_leaves(model, monkeypatch):
    graph, params = model
    monkeypatch.setattr(cache_module, "KEY_BLOCK", 12)  # several blocks, which do not divide the cache
    split = models.layer_params(params)
    rng = np.random.default_rng(0)
    lengths = np.array([40, 19, 1], np.int32)
    tokens = rng.integers(1, 97, (3, 48)).astype(np.int32)
    slots = np.array([2, 0, 9], np.int32)  # the third row's is out of bounds: it is padding
    empty = models.init_cache(graph, 4, 53, jnp.float32)
    hidden, whole = models.prefill(graph, split, tokens, lengths, empty, slots)
    run, found, cache = jax.jit(functools.partial(models.prefill_part, graph)), {}, empty
    for start in range(0, 48, 16):
        left = np.clip(lengths - start, 0, 16)
        # Of a prompt that is done, nothing more comes: its row is one of padding.
        states, cache = run(
            split, tokens[:, start : start + 16], np.full(3, start, np.int32), left, cache, np.where(left > 0, slots, 9)
        )
        found |= {row: states[row] for row in range(3) if left[row] > 0}
    np.testing.assert_allclose([found[0], found[1]], hidden[:2], atol=1e-5)

    def in_time(held):
        """[slots, time, ...]"""
        return [np.moveaxis(layer, time, 1) for layers, time in ((held.keys, 3), (held.values, 2)) for layer in layers]

    for ours, theirs in zip(in_time(cache), in_time(whole), strict=True):
        np.testing.assert_allclose(ours[2, :40], theirs[2, :40], atol=1e-5)
        np.testing.assert_allclose(ours[0, :19], theirs[0, :19], atol=1e-5)
        assert not ours[1].any() and not ours[3].any(), "other slots are not written to"


def test_the_others_decode_while_a_long_prompt_is_on_its_way(model):
    graph, params = model
    config = dataclasses.replace(NARROW, slots=3, stop_token_ids=())
    long, other = tuple(prompts(1, 97)[0] * 9)[:72], tuple(range(2, 80))
    short = (5, 6, 7)

    def outcome(requests, cancelled=()):
        batch, found, order = Batch(graph, config, params, 80), {}, []
        batch.submit(requests)
        while batch.busy:
            for progress in batch.step():
                found.setdefault(progress.id, []).extend(progress.token_ids)
                order.append(progress.id)
            batch.cancel(set(cancelled))
        return found, order

    requests = [Request(0, long, 10), Request(1, short, 10, sample=4), Request(2, long, 10, sample=1)]
    found, order = outcome([*requests, Request(3, other, 4)])
    assert order[0] == 1 and set(order) == {0, 1, 2, 3}, "the short prompt's completion begins first"
    one_prefill = dataclasses.replace(config, buckets=(8, 128))
    for request in requests:
        alone, whole = Batch(graph, config, params, 80), Batch(graph, one_prefill, params, 80)
        for batch in (alone, whole):
            batch.submit([request])
            made = []
            while batch.busy:
                made += [token for progress in batch.step() for token in progress.token_ids]
            assert made == found[request.id]
    left, _ = outcome([*requests, Request(3, other, 4)], cancelled=(0,))
    assert left == {key: found[key] for key in (1, 2, 3)}, "who waits for a prompt gets it without who asked first"
    assert set(outcome(requests, cancelled=(0, 2))[0]) == {1}


@pytest.mark.parametrize("lengths", [(14, 20, 25), (70, 60, 90)], ids=["short", "in parts"])
def test_what_prompts_begin_with_is_run_once(model, lengths):
    """Each begins as the one before it, for 12 tokens less than that one has; the last two wait for slots."""
    graph, params = model
    rng = np.random.default_rng(1)
    asked = [tuple(rng.integers(1, 97, lengths[0]).tolist())]
    for length in lengths[1:]:
        shared = min(length, len(asked[-1])) - 12
        asked.append((*asked[-1][:shared], *rng.integers(1, 97, length - shared).tolist()))
    asked += [(*asked[0][:-1], 5), asked[1]]
    requests = [Request(number, prompt, 6, seed=number) for number, prompt in enumerate(asked)]

    def outcome(shared_prefix):
        config = dataclasses.replace(WIDE, slots=3, stop_token_ids=(), shared_prefix=shared_prefix)
        ran = []

        def run(key, program, *args):
            if key[0] in ("prefill", "prefill-part"):
                lengths, slots = args[-2:]
                ran.append(int(lengths[slots < 3].sum()))
            return program(*args)

        batch, found = Batch(graph, config, params, 90, run=run), {}
        batch.submit(requests)
        while batch.busy:
            for progress in batch.step():
                found.setdefault(progress.id, []).extend(progress.token_ids)
        return found, sum(ran)

    alone, whole = outcome(0)
    found, run = outcome(2)
    assert found == alone
    assert whole >= sum(map(len, asked[:4]))
    assert whole - run >= sum(min(lengths[i], lengths[i + 1]) - 12 for i in range(2))


def test_a_completion_ends_with_its_first_stop_token_or_at_its_limit(model):
    graph, params = model
    reasons = collections.Counter()
    for completion in TokenSampler(graph, WIDE).sample(prompts(7), range(7), 3, params=params, max_new_tokens=6):
        reasons[completion.finish_reason] += 1
        assert not set(completion.token_ids[:-1]) & set(WIDE.stop_token_ids)
        if completion.finish_reason == "stop":
            assert completion.token_ids[-1] in WIDE.stop_token_ids
        else:
            assert len(completion.token_ids) == 6 and completion.token_ids[-1] not in WIDE.stop_token_ids
        assert len(completion.log_probs) == len(completion.token_ids)
    assert reasons["stop"] and reasons["length"]


def test_slots_are_refilled_while_others_decode(model):
    graph, params = model
    asked = [prompt * 30 for prompt in prompts(6, longest=2)]
    order = [index for index, _ in TokenSampler(graph, NARROW).stream(asked, range(6), 3, params=params)]
    assert sorted(order) == list(range(18))
    assert order != sorted(order), "a short one overtakes a long one"


def test_each_program_writes_to_the_cache_that_it_is_given(model):
    graph, params = model
    ran = set()

    def run(key, program, *args):
        given = [
            leaf for arg in args if isinstance(arg, SlotState) for leaf in jax.tree.leaves((arg.cache, arg.prompts))
        ]
        result = program(*args)
        assert all(leaf.is_deleted() for leaf in given), "donated: no second one is allocated"
        ran.add(key[0])
        return result

    batch = Batch(graph, NARROW, params, 60, run=run)
    batch.submit([Request(number, tuple(prompt), 4) for number, prompt in enumerate([*prompts(2), [5] * 60])])
    while batch.busy:
        batch.step()
    assert ran >= {"prefill", "prefill-part", "start", "decode"}


def test_a_program_is_compiled_once_for_each_shape_and_logged(model, caplog):
    graph, params = model
    sampler, compiled = TokenSampler(graph, dataclasses.replace(WIDE, shared_prefix=4)), collections.Counter()

    def heard(event, seconds, **facts):
        compiled.update([facts["fun_name"]] if event == EVENT else [])

    jax.monitoring.register_event_duration_secs_listener(heard)

    def sample(seed):
        rng = np.random.default_rng(seed)
        asked = [*prompts(7, seed=seed), rng.integers(1, 97, 60).tolist()]
        asked += [[*asked[-1][:40], 5], [*asked[0], *asked[0]]]
        sampler.sample(asked, range(10), 2, params=params)

    with caplog.at_level("INFO", "absl"):
        for seed in range(3):
            sample(seed)
    # Empty, start, decode, copy; prefill of each bucket, whole and as a part, of 1, 2 and 4 rows.
    assert sampler.compilations <= 4 + 2 * 3 * len(BUCKETS)
    first_runs = collections.Counter(message.split()[4] for message in caplog.messages if "first run of" in message)
    assert sum(first_runs.values()) == sampler.compilations
    assert set(first_runs) == set(PROGRAMS)
    count = {name: compiled[program] + compiled[f"jit({program})"] for name, program in PROGRAMS.items()}
    assert all(count[name] <= first_runs[name] for name in PROGRAMS), "some are those of another test's sampler"
    assert all(count[name] == first_runs[name] for name in ("empty", "start", "decode"))
    compiled.clear()
    sample(0)
    assert not compiled


def test_weights_are_those_of_the_call(model):
    graph, params = model
    asked = [[1] * 30]
    before = TokenSampler(graph, NARROW).sample(asked, [0], params=params)[0]
    other = jax.tree.map(lambda leaf: -leaf, params)
    after = TokenSampler(graph, NARROW).sample(asked, [0], params=other)[0]
    assert before.token_ids != after.token_ids
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params)), "the trainer's arrays are not donated"


@pytest.mark.parametrize("shared_prefix", [0, 4])
def test_samples_that_share_a_row_are_those_of_slots_with_rows_of_their_own(model, shared_prefix):
    """Rows are fewer than prompts, prompts longer than a bucket or alike among them, and completions end apart."""
    graph, params = model
    asked = [*prompts(5, seed=3), (7 * np.arange(75) % 96 + 1).tolist()]
    asked.append([*asked[-1][:50], 3, 4, 5])
    requests = [
        Request(5 * i + j, tuple(asked[i]), 3 + (i + 2 * j) % 8, i, j) for i in range(7) for j in range(3 + i % 2)
    ]

    def outcome(samples):
        config = dataclasses.replace(WIDE, slots=8, samples=samples, shared_prefix=shared_prefix, steps_per_call=2)
        batch, tokens, log_probs, rows = Batch(graph, config, params, 80), {}, {}, set()
        batch.submit(requests)
        while batch.busy:
            for progress in batch.step():
                tokens.setdefault(progress.id, []).extend(progress.token_ids)
                log_probs.setdefault(progress.id, []).extend(progress.log_probs)
            rows.add(batch._state.prompts.values[0].shape[0])
        return tokens, log_probs, rows

    alone, shared = outcome(1), outcome(3)
    assert (alone[2], shared[2]) == ({8}, {4})
    assert shared[0] == alone[0] and set(alone[0]) == {request.id for request in requests}
    for key, expected in alone[1].items():
        np.testing.assert_allclose(shared[1][key], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([[]], [0]), "prompt 0 is empty"),
        (([[1]], [0, 1]), "2 seeds for 1 prompts"),
        (([[1]], [0], 0), "n=0"),
    ],
)
def test_bad_requests_are_refused_by_name(model, arguments, named):
    graph, params = model
    with pytest.raises(ValueError, match=named):
        TokenSampler(graph, SamplerConfig(max_new_tokens=5, buckets=BUCKETS)).sample(*arguments, params=params)
    with pytest.raises(ValueError, match="max_new_tokens=6"):
        TokenSampler(graph, SamplerConfig(max_new_tokens=5)).sample([[1]], [0], params=params, max_new_tokens=6)


@pytest.mark.parametrize(
    "field",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"min_p": 2}, {"top_k": -1}],
    ids=str,
)
def test_bad_distributions_are_refused_by_name(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        Distribution(**field)


def test_rooms_of_long_prompts_are_few_and_large_enough():
    config = SamplerConfig(max_new_tokens=4)
    rooms = {length: config.room(length) for length in range(1, 16_385, 7)}
    assert all(length <= room < 2 * max(length, 64) for length, room in rooms.items())
    assert len(set(rooms.values())) == len(config.buckets) + 7


@pytest.mark.parametrize("field", [{"slots": 0}, {"buckets": (8, 4)}], ids=str)
def test_bad_configs_are_refused_by_name(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        SamplerConfig(**{"max_new_tokens": 4, **field})
