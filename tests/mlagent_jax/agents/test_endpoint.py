"""The client of a language model's endpoint, against a real HTTP server that answers as told, faults included."""

import dataclasses
import http.server
import json
import threading

import pytest

from environments.actions.openai_http import EndpointError
from mlagent_jax.agents import endpoint as endpoint_module
from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.runtime import jsonl
from mlagent_jax.runtime.errors import BudgetError, ConfigError
from mlagent_jax.settings.hosts import EndpointConfig

KEY = "sk-secret-123456"
ASK = [{"role": "user", "content": "why?"}]


class Server(http.server.ThreadingHTTPServer):
    """Takes replies from `script`, (status, headers, body) or `hang`; then counts up `answer 1`, `answer 2`, ..."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.count = [], [], 0
        self.lock, self.release = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers.get("Authorization"), body))
            reply = self.server.script.pop(0) if self.server.script else None
            self.server.count += reply is None
            count = self.server.count
        if reply == "hang":
            self.server.release.wait(20)
            return
        status, headers, content = reply or (200, {}, self.answer(body, count))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def answer(self, body, count):
        if self.path.endswith("embeddings"):
            rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
            return json.dumps({"data": rows[::-1], "usage": {"prompt_tokens": 5}}).encode()
        choice = {"message": {"role": "assistant", "content": f"answer {count}"}, "finish_reason": "stop"}
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}).encode()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@pytest.fixture
def config(server):
    return EndpointConfig(
        url=server.url, model="m", max_tokens=20, timeout_seconds=5.0, attempts=3, backoff_seconds=0.001
    )


def client(config, folder):
    return EndpointClient(config, folder, {"MLAGENT_ENDPOINT_KEY": f"{KEY}\n"})


def log(folder):
    return jsonl.read(folder / "endpoint.jsonl")


def test_a_request_says_all_that_the_config_does_and_asking_again_is_free(server, config, tmp_path):
    with client(config, tmp_path) as one:
        first = [one.chat(ASK, seed=seed).text for seed in (0, 1, 0)]
    with client(config, tmp_path) as again:
        assert [again.chat(ASK, seed=seed).text for seed in (0, 1, 0)] == first == ["answer 1", "answer 2", "answer 1"]
        assert (again.spent.requests, again.spent.tokens) == (2, 30)
    path, authorization, body = server.requests[0]
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {"model": "m", "messages": ASK, "temperature": 1.0, "top_p": 1.0, "max_tokens": 20, "seed": 0}
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"Retry-After": "0"}, KEY.encode()),
        (500, {}, b"oops"),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b'{"choices": []}'),
        (200, {"Content-Length": "5000"}, b"cut off"),
        "hang",
    ],
)
def test_what_may_pass_is_asked_again_and_is_an_error_after_all_attempts(server, config, tmp_path, fault):
    with client(dataclasses.replace(config, timeout_seconds=0.2), tmp_path) as one:
        server.script = [fault, fault]
        assert one.chat(ASK).text == "answer 1"
        server.script = [fault] * 3
        with pytest.raises(EndpointError, match="attempt 3 of 3") as raised:
            one.chat(ASK, seed=1)
        assert one.chat(ASK, seed=1).text == "answer 2", "a failure is not kept"
    assert KEY not in str(raised.value)
    assert ["error" in line for line in log(tmp_path)] == [True, True, False, True, True, True, False]


def test_what_will_not_pass_is_asked_once(server, config, tmp_path):
    server.script = [(401, {}, f"no model for {KEY}".encode())]
    with client(config, tmp_path) as one, pytest.raises(EndpointError, match=r"status 401: no model for \[key\]"):
        one.chat(ASK)
    assert len(server.requests) == 1


def test_the_budget_is_never_exceeded_and_counts_what_was_spent_before_a_restart(server, config, tmp_path):
    # Each answer takes 15 tokens, 10 * 1 + 5 * 4 = 30 millionths.
    config = dataclasses.replace(config, prompt_price=1.0, completion_price=4.0, budget_cost=400e-6, concurrency=4)
    asked = [ASK] * 40
    for _ in range(2):
        with client(config, tmp_path) as one, pytest.raises(BudgetError, match=r"budget_cost, 0\.0004"):
            one.chat_many(asked, range(40))
    with client(config, tmp_path) as one:
        assert 200e-6 < one.spent.cost <= 400e-6
        assert one.spent.cost == pytest.approx(30e-6 * len(server.requests))
    with client(dataclasses.replace(config, budget_cost=1.0), tmp_path) as one:
        assert len({answer.text for answer in one.chat_many(asked, range(40))}) == 40
    assert len(server.requests) == 40, "what was answered before the budget was spent is not asked again"
    config = dataclasses.replace(config, budget_cost=0.0, budget_tokens=600)
    with client(config, tmp_path) as one, pytest.raises(BudgetError, match="took 600 tokens"):
        one.chat(ASK, seed=99)


class Clock:
    """Time that passes only where somebody waits for it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(endpoint_module, "CLOCK", lambda: self.now)
        monkeypatch.setattr(endpoint_module, "SLEEP", self.sleep)

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("limits", [{"requests_per_minute": 3}, {"tokens_per_minute": 250}])
def test_no_minute_holds_more_than_the_limits(server, config, tmp_path, monkeypatch, limits):
    clock = Clock(monkeypatch)
    sent = []
    with client(dataclasses.replace(config, **limits), tmp_path) as one:
        for seed in range(9):
            one.chat(ASK, seed=seed)
            sent.append(clock.now)
    assert max(sum(start <= time < start + 60 for time in sent) for start in sent) == 3
    assert sent[-1] - sent[0] < 200


def test_after_too_many_requests_all_wait_as_long_as_was_asked_for(server, config, tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    server.script = [(429, {"Retry-After": "7"}, b"")]
    with client(config, tmp_path) as one:
        one.chat(ASK)
        assert 7 <= clock.now - 1000.0 < 9
        one._pace.hold(5)
        before = clock.now
        one.chat(ASK, seed=1)
        assert clock.now - before >= 5


def test_many_are_asked_at_once_and_an_answer_that_cannot_be_had_is_an_error_in_its_place(server, config, tmp_path):
    server.script = [(400, {}, b"no")]
    with client(dataclasses.replace(config, concurrency=1), tmp_path) as one:
        first, *others = one.chat_many([ASK] * 3, range(3))
    assert isinstance(first, EndpointError)
    assert [answer.text for answer in others] == ["answer 1", "answer 2"]


def test_an_endpoint_that_is_down_is_told_at_its_first_attempt(config, tmp_path, caplog):
    with client(dataclasses.replace(config, url="http://127.0.0.1:9/v1"), tmp_path) as one:
        answers = one.chat_many([ASK] * 4, range(4))
    assert all(isinstance(answer, EndpointError) for answer in answers)
    assert len(caplog.messages) == 1, "once, not for every request"
    assert "does not answer" in caplog.messages[0] and "attempt 2 of 3" in caplog.messages[0]


def test_a_signal_waits_for_no_request_under_way(server, config, tmp_path):
    server.script = ["hang", "hang"]

    def stop(_):
        raise KeyboardInterrupt

    with client(dataclasses.replace(config, concurrency=3), tmp_path) as one, pytest.raises(KeyboardInterrupt):
        one.chat_many([ASK] * 3, range(3), stop)  # called with the one answer that there is
    assert not server.release.is_set() and len(server.requests) <= 3


def test_embeddings_come_in_the_order_of_their_texts(server, config, tmp_path):
    texts = ["x" * length for length in range(1, 71)]
    with client(config, tmp_path) as one:
        assert one.embed(texts, "e") == [[float(len(text)), 1.0] for text in texts]
        assert one.embed(texts, "e")[0] == [1.0, 1.0]
    assert [len(body["input"]) for _, _, body in server.requests] == [64, 6]


def test_a_wrong_address_or_key_is_said_without_the_key(config, tmp_path):
    for changed, named in (({"url": "ftp://host"}, "config.endpoint.url"), ({"url": ""}, "config.endpoint.url")):
        with pytest.raises(ConfigError, match=named):
            client(dataclasses.replace(config, **changed), tmp_path)
    with pytest.raises(ConfigError, match=r"\$MLAGENT_ENDPOINT_KEY") as raised:
        EndpointClient(config, tmp_path, {"MLAGENT_ENDPOINT_KEY": f"{KEY}\n{KEY}"})
    assert KEY not in str(raised.value)


def test_what_a_model_refuses_can_be_left_out(server, config, tmp_path):
    bare = dataclasses.replace(config, send_temperature=False, send_top_p=False, send_seed=False)
    with client(bare, tmp_path) as one:
        one.chat(ASK)
    assert server.requests[0][2] == {"model": "m", "messages": ASK, "max_tokens": 20}


def test_an_answer_that_went_into_reasoning_alone_is_paid_for_once(server, config, tmp_path):
    choice = {"message": {"content": None, "reasoning_content": "so"}, "finish_reason": "length"}
    answer = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}
    server.script = [(200, {}, json.dumps(answer).encode())]
    with client(config, tmp_path) as one:
        said = one.chat(ASK)
        assert (said.text, said.finish_reason) == ("", "length")
        assert one.spent.tokens == 30
    assert len(server.requests) == 1
