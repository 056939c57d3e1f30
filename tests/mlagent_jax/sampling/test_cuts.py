"""Every cut of the distribution, on peaked, flat, tied and extreme logits, against a reference in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.checkpoints import hugging_face
from mlagent_jax.sampling import Batch, Distribution, Request, Sampler, SamplerConfig, SamplingError, TokenSampler, load
from mlagent_jax.sampling.distribution import Distributions, draw, log_distribution, request_keys

QWEN = 151_936
PEAKED = Distribution(0.7, top_p=0.9)
SETTINGS = [
    Distribution(*values)
    for values in itertools.product(
        (2e-38, 1e-3, 0.7, 1.0, 1e30), (0, 1, 3, 2**31 - 1), (1e-300, 1e-40, 0.1, 0.9, 1.0), (0.0, 1e-40, 0.3, 1.0)
    )
]
FEW = [
    *(Distribution(top_p=0.9), Distribution(0.7, top_p=0.95), Distribution(top_k=5), Distribution(min_p=0.1)),
    *(Distribution(0.7, 40, 0.9, 0.02), Distribution(2e-38, 2, 1e-300, 1.0), Distribution(3.0, 0, 0.3, 0.5)),
]


def rows(vocab):
    """Rows of logits by what is hard about them."""
    rng = np.random.default_rng(vocab)
    normal = rng.standard_normal((2, vocab)).astype(np.float32)
    peak = np.where(np.arange(vocab) == vocab // 2, 50.0, normal[0])
    two = np.where(np.arange(vocab) % max(1, vocab - 1) == 0, 20.0, normal[0])  # the first and the last tie
    some = np.where(np.arange(vocab) % 3 == 0, normal[0], -np.inf)
    huge = normal[0] * 1e37
    return {
        **{f"scale {scale}": normal[1] * np.float32(scale) for scale in (1, 4, 8)},
        "flat": np.zeros(vocab),
        "peak": peak,
        "two": two,
        "tied": np.round(normal[0] * 2),
        "some": some,
        "huge": huge,
        "far below": normal[0] - 1e30,
        "tiny": normal[0] * 1e-40,
        "descending": -np.arange(vocab) / 3,
    }


def check(settings, logits, got, name):
    """Compare one row with the definition: which tokens stay, and their normalised log-probabilities.

    Rounding may decide only whether a sum of float32 has reached `top_p`.
    """
    tiny = np.finfo(np.float32).tiny
    x = np.where(np.abs(logits) < tiny, 0, logits.astype(np.float64))  # as devices flush them
    min_p = settings.min_p * (settings.min_p >= tiny)
    with np.errstate(over="ignore"):
        p = np.exp((x - x.max()) / settings.temperature)
    kept = np.isfinite(got)
    assert not np.isnan(got).any() and kept[x.argmax()], name
    least_of_k = np.sort(x)[-min(settings.top_k or len(x), len(x))]
    p = np.where(x >= least_of_k, p, 0)
    q = p / p.sum()
    least = x[kept].min()
    above, inside = q[x > least].sum(), q[kept].sum()
    slack = 2e-6 * max(1, np.log2(len(x)))
    assert above < settings.top_p + slack or least == x.max() or settings.top_p == 1, name
    assert (x[kept] >= least_of_k).all(), name
    assert (q[kept] >= min_p * q.max() * (1 - 1e-5)).all(), name
    left_out = (x < least) & (q > 1e-37)  # beyond, float32 is 0
    next_one = q[left_out].max(initial=0)
    full = settings.top_p < 1 and inside >= settings.top_p - slack
    assert not left_out.any() or full or next_one <= min_p * q.max() * (1 + 1e-5), name
    wanted = q[kept] / q[kept].sum()
    np.testing.assert_allclose(np.exp(got[kept], dtype=np.float64), wanted, rtol=2e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("vocab", [1, 2, 7, 1024])
def test_cuts_of_rows_are_those_of_the_definition(vocab):
    made = rows(vocab)
    pairs = list(itertools.product(made.items(), SETTINGS))
    check_rows(pairs)


def test_cuts_of_rows_of_a_large_vocabulary_are_those_of_the_definition():
    made = rows(QWEN)
    check_rows([*zip(made.items(), SETTINGS[37::31], strict=False), *itertools.product(made.items(), FEW[:5:4])])


def check_rows(pairs):
    each = jax.tree.map(lambda *row: jnp.concatenate(row), *(Distributions.same(settings, 1) for _, settings in pairs))
    logits = np.stack([row for (_, row), _ in pairs]).astype(np.float32)
    whole = np.asarray(jax.jit(log_distribution)(each, jnp.asarray(logits)))
    for (got, row), ((name, _), settings) in zip(zip(whole, logits, strict=True), pairs, strict=True):
        check(settings, row, got, f"{name}: {settings}")


@pytest.mark.parametrize("settings", FEW, ids=str)
def test_compiled_in_cuts_are_those_of_the_definition(settings):
    for vocab in (7, 1024):
        made = rows(vocab)
        logits = np.stack(list(made.values())).astype(np.float32)
        whole = jax.jit(log_distribution, static_argnums=0)(settings, jnp.asarray(logits))
        for name, row, got in zip(made, logits, np.asarray(whole), strict=True):
            check(settings, row, got, f"{name}: {settings}")


@pytest.mark.slow
@pytest.mark.parametrize("settings", FEW, ids=str)
def test_compiled_in_cuts_of_a_large_vocabulary_are_those_of_the_definition(settings):
    made = rows(QWEN)
    logits = np.stack(list(made.values())).astype(np.float32)
    whole = jax.jit(log_distribution, static_argnums=0)(settings, jnp.asarray(logits))
    for name, row, got in zip(made, logits, np.asarray(whole), strict=True):
        check(settings, row, got, f"{name}: {settings}")


@pytest.mark.parametrize("settings", [PEAKED, Distributions.same(PEAKED, 64)], ids=type)
def test_drawn_tokens_are_among_those_that_stay(settings):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((64, 1024)) * 8, jnp.float32)
    keys = request_keys(*jnp.zeros((2, 64), jnp.uint32), jnp.arange(64))
    tokens, log_probs = draw(settings, logits, keys, jnp.zeros((64,), jnp.int32))
    stays = np.isfinite(np.asarray(log_distribution(settings, logits)))
    assert stays[np.arange(64), tokens].all()
    assert np.isfinite(log_probs).all()


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 2**31}, {"top_k": -1}, {"temperature": 1e31}, {"temperature": np.nan}, {"top_p": 0.0}, {"min_p": 2.0}],
    ids=str,
)
def test_numbers_that_no_program_takes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Distribution(**wrong)


BAD_TOKEN = 60


@pytest.fixture(scope="module")
def damaged(checkpoint):
    """A model in which one token's embedding is NaN: whatever reads that token comes to nothing."""
    _, graph, params = hugging_face.load(checkpoint("qwen2-untied-mha-linear").folder, dtype=jnp.float32)
    table = params["embedder"]["embedding"].at[BAD_TOKEN].set(jnp.nan)
    return graph, {**params, "embedder": {"embedding": table}}


@pytest.mark.parametrize("distribution", [Distribution(), Distribution(0), Distribution(top_p=0.5), None], ids=str)
def test_an_output_that_is_not_a_number_costs_its_request_alone(damaged, distribution):
    graph, params = damaged
    config = SamplerConfig(max_new_tokens=4, distribution=distribution, slots=2, buckets=(8,), steps_per_call=2)
    greedy = Distribution(0)
    good, bad = Request(0, (1, 2, 3), 4, distribution=greedy), Request(1, (1, BAD_TOKEN, 3), 4, distribution=greedy)
    ended = {}
    batch = Batch(graph, config, params, 8)
    batch.submit([good, bad])
    while batch.busy:
        for progress in batch.step():
            ended[progress.id] = progress
    assert ended[0].finish_reason == "length" and "NaN" in ended[1].error and not ended[1].token_ids
    later = [Request(2 + place, (1, 2, 3), 4, distribution=greedy) for place in range(2)]
    batch.submit(later)  # in both slots: what the bad one left behind does not reach them
    while batch.busy:
        for progress in batch.step():
            ended[progress.id] = progress
    assert [ended[request.id].finish_reason for request in later] == ["length"] * 2
    if distribution is not None:
        sampler = TokenSampler(graph, config)
        with pytest.raises(SamplingError, match="prompt 1, sample 0"):
            sampler.sample([good.prompt, bad.prompt], [0, 0], params=params)


def test_a_text_sampler_names_the_prompt_whose_output_is_not_a_number(speaker):
    model, tokenizer = load(speaker)
    table = model.params["embedder"]["embedding"].at[7].set(jnp.nan)  # the head's too
    broken = Sampler(
        type(model)(model.graph, {**model.params, "embedder": {"embedding": table}}, ()), tokenizer, slots=2
    )
    with pytest.raises(SamplingError, match=r"prompt 0, sample 0.*NaN"):
        list(broken.stream(["a"], max_new_tokens=2))
