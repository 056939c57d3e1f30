"""The server as a client sees it: OpenAI's own, over HTTP."""

import concurrent.futures
import threading
import time

import openai
import pytest

from mlagent_jax.serving.access import check_host

KEY = "sesame"


@pytest.fixture(scope="module")
def server(sampler, serving):
    with serving(sampler, KEY) as place:
        yield place


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key=KEY, max_retries=0, timeout=300) as made:
        yield made


def test_completions_are_those_of_the_library(client, sampler):
    prompts = ["def f(x):", "Action:"]
    expected = sampler.generate(prompts, n=2, max_new_tokens=24, temperature=0.8, top_p=0.9, seed=5)
    settings = {"n": 2, "max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 5, "logprobs": 1}
    answer = client.completions.create(model="policy", prompt=prompts, **settings)
    assert [choice.text for choice in answer.choices] == [sample.text for row in expected for sample in row]
    flat = [sample for row in expected for sample in row]
    for choice, sample in zip(answer.choices, flat, strict=True):
        assert choice.finish_reason == sample.finish_reason
        assert choice.logprobs.token_logprobs == pytest.approx(sample.log_probs, abs=1e-5)
    assert answer.usage.completion_tokens == sum(len(sample.token_ids) for sample in flat)
    assert answer.usage.prompt_tokens == sum(len(sampler.encode(prompt)) for prompt in prompts)


@pytest.mark.slow
def test_a_stream_joined_is_the_whole_answer(client):
    asked = {
        "model": "policy",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Action:"}]}],
        "n": 2,
        "seed": 3,
        "max_completion_tokens": 40,
        "stop": ["ob", "e"],
        "logprobs": True,
    }
    whole = client.chat.completions.create(**asked)
    texts, reasons, tokens, usage = ["", ""], [None, None], [0, 0], None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [len(choice.logprobs.content) for choice in whole.choices]
    assert not any(stop in text for text in texts for stop in asked["stop"])
    assert usage == whole.usage


def test_concurrent_requests_share_the_batch_and_get_what_they_get_alone(client):
    def ask(seed):
        return client.completions.create(model="policy", prompt="Next:\n", seed=seed, max_tokens=30).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, range(6)))
    assert together[:2] == [ask(0), ask(1)] and len(set(together)) > 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"prompt": "a" * 500}, "the prompt has .* tokens; this server takes 60"),
        ({"max_tokens": 65}, "65 tokens are more"),
        ({"temperature": -1}, "temperature: .*greater than or equal to 0"),
        ({"n": 99}, "99 samples in one request"),
        ({"stop": [""]}, "stop has an empty string"),
        ({"logprobs": 5}, "logprobs: .*less than or equal to 1"),
        ({"presence_penalty": 1}, "presence_penalty is not supported"),
        ({"extra_body": {"temprature": 1}}, "temprature: Extra inputs"),
        ({"prompt": [70, 999]}, "token id 999"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
    ids=str,
)
def test_a_bad_request_is_told_what_is_wrong(client, arguments, named):
    with pytest.raises(openai.BadRequestError, match=named):
        client.completions.create(**{"model": "policy", "prompt": "a", **arguments})


def test_unknown_models_and_places_are_not_found(client):
    assert [model.id for model in client.models.list()] == ["policy"]
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.NotFoundError, match="/v1/files"):
        client.files.list()


def test_without_the_key_nobody_is_served(server):
    with (
        openai.OpenAI(base_url=f"{server[1]}/v1", api_key="guess", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        stranger.models.list()


def test_without_a_key_only_this_machine_is_served():
    for host, key in (("127.0.0.1", None), ("::1", None), ("localhost", None), ("0.0.0.0", KEY)):
        check_host(host, key)
    with pytest.raises(ValueError, match="MLAGENT_API_KEY"):
        check_host("0.0.0.0", None)


def test_a_full_queue_refuses_and_a_client_that_leaves_makes_room(sampler, serving, monkeypatch):
    steps = threading.Semaphore(1)
    make = sampler.batch

    def stepwise(*args, **settings):
        batch = make(*args, **settings)
        step = batch.step
        batch.step = lambda: (steps.acquire(), step())[1]
        return batch

    monkeypatch.setattr(sampler, "batch", stepwise)
    with (
        serving(sampler, waiting=0) as (service, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        with client.completions.create(model="policy", prompt="a", n=4, max_tokens=64, stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError, match="samples are open and 4 may be"):
                client.completions.create(model="policy", prompt="a", n=4)
        while service.open_samples:
            time.sleep(0.01)
        steps.release(100)
        assert len(client.completions.create(model="policy", prompt="a", n=4).choices) == 4


def test_a_sampler_that_fails_is_reported(sampler, serving, monkeypatch):
    def broken(*args, **settings):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sampler, "batch", broken)
    with (
        serving(sampler) as (service, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client,
    ):
        with pytest.raises(openai.InternalServerError, match="the sampler has"):
            client.completions.create(model="policy", prompt="a")
        assert not service.healthy


def test_equal_prompts_without_a_seed_differ_and_with_one_do_not(client):
    free = client.completions.create(model="policy", prompt=["Next:\n"] * 3, max_tokens=30)
    assert len({choice.text for choice in free.choices}) == 3
    seeded = client.completions.create(model="policy", prompt=["Next:\n"] * 3, max_tokens=30, seed=1)
    assert len({choice.text for choice in seeded.choices}) == 1


def test_a_token_s_offset_is_where_it_begins_in_the_text(client):
    answer = client.completions.create(model="policy", prompt="Next:\n", max_tokens=30, seed=4, logprobs=0)
    choice = answer.choices[0]
    before = ""
    for token, place in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if "\N{REPLACEMENT CHARACTER}" not in before + token and place < len(choice.text):
            assert choice.text.startswith(token, place)
        before = token
    assert choice.logprobs.text_offset[0] == 0 and choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)


def test_the_model_is_found_by_its_name(client):
    assert client.models.retrieve("policy").id == "policy"
    with pytest.raises(openai.NotFoundError, match="'org/other' is not served here"):
        client.models.retrieve("org/other")


def test_special_tokens_of_a_completion_s_prompt_are_tokens_and_of_a_conversation_s_text(client, sampler):
    name = sampler.tokenizer.decode([sampler.tokenizer.eos_id])
    answer = client.completions.create(model="policy", prompt=f"a{name}", max_tokens=1)
    assert answer.usage.prompt_tokens == 2
    said = client.chat.completions.create(model="policy", messages=[{"role": "user", "content": name}], max_tokens=1)
    assert said.usage.prompt_tokens > 2
