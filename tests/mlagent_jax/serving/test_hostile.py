"""What one client does costs no other anything, and no place of another site reaches a server without a key."""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from fuzzing import few, json_trees
from hypothesis import given
from hypothesis import strategies as st

from mlagent_jax.sampling.batch import Batch
from mlagent_jax.serving import app as app_module
from mlagent_jax.serving.connections import TimedProtocol

PLAIN = {"prompt": "def f(x):", "max_tokens": 3, "seed": 1}


@pytest.fixture(scope="module")
def server(sampler, serving):
    with serving(sampler) as (service, url):
        yield service, url


def ask(url, body, path="/v1/completions", **headers):
    """(status, answer) of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def connect(url, data):
    host, _, port = url.removeprefix("http://").partition(":")
    made = socket.create_connection((host, int(port)))
    made.sendall(data)
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 2**31},
        {"top_k": 2**31 - 1},
        {"top_p": 1e-45},
        {"top_p": 1e-300},
        {"temperature": 1e-45},
        {"temperature": 1e300},
        {"min_p": 1e-300},
        {"seed": -(2**200)},
        {"seed": 10**400},
        {"max_tokens": 2**70},
        {"n": 2**70},
        {"prompt": [2**70]},
        {"prompt": [True]},
        {"prompt": ["a"] * 10_000, "n": 1000},
        {"prompt": "\x00\x1b[2J"},
        {"stop": ["x" * 4096] * 16},
        {"stop": [chr(0x10FFFF) + letter for letter in "abcdefghijklmnop"]},
    ],
    ids=str,
)
def test_no_number_of_a_request_reaches_the_others(server, fields):
    plain = ask(server[1], PLAIN)
    status, answer = ask(server[1], {**PLAIN, "logprobs": 1, **fields})
    assert status == 400 or (status == 200 and answer["choices"][0]["logprobs"]["tokens"])
    assert status == 400 or "NaN" not in json.dumps(answer)
    again = ask(server[1], PLAIN)
    assert again[0] == 200 and again[1]["choices"] == plain[1]["choices"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b"\xff", b"[" * 100_000, b'{"top_p": 1e999}'],
)
def test_a_body_that_is_no_request_is_told_so(server, body):
    status, answer = ask(server[1], body)
    assert status == 400 and answer["error"]["message"]


FIELDS = [
    *("prompt", "messages", "model", "n", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "stream"),
    *("stream_options", "max_tokens", "logprobs", "logit_bias", "best_of", "echo", "user", "max_completion_tokens"),
]


@few
@given(
    st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    st.dictionaries(st.sampled_from(FIELDS), json_trees, max_size=6),
    st.booleans(),
)
def test_any_fields_are_answered_or_refused(server, path, fields, complete):
    body = {**(PLAIN if complete and "chat" not in path else {}), **fields}
    host, _, port = server[1].removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    assert answer.status in (200, 400, 404, 429)
    assert server[0].healthy


def test_a_failure_in_the_sampler_costs_its_request_alone(sampler, serving, monkeypatch):
    marked = tuple(sampler.encode("Action:"))
    start = Batch._start

    def poisoned(batch, placed):
        if any(request.prompt == marked for request in placed.values()):
            raise RuntimeError("no such number")
        return start(batch, placed)

    with serving(sampler) as (service, url):
        alone = ask(url, {**PLAIN, "max_tokens": 60, "logprobs": 1})[1]["choices"]
        monkeypatch.setattr(Batch, "_start", poisoned)
        found = {}
        honest = threading.Thread(
            target=lambda: found.update(ok=ask(url, {**PLAIN, "max_tokens": 60, "logprobs": 1})[1]["choices"])
        )
        honest.start()
        status, answer = ask(url, {**PLAIN, "prompt": "Action:"})
        honest.join()
        assert status == 500 and "no such number" in answer["error"]["message"]
        assert [choice["text"] for choice in found["ok"]] == [choice["text"] for choice in alone]
        assert len(found["ok"][0]["logprobs"]["tokens"]) == len(alone[0]["logprobs"]["tokens"])
        assert service.healthy and ask(url, PLAIN)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "127.0.0.1", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "null"}, 403),
    ],
    ids=str,
)
def test_without_a_key_the_request_must_be_this_machine_s(server, headers, status):
    assert ask(server[1], PLAIN, **headers)[0] == status


def test_a_client_that_leaves_while_it_waits_makes_room_streamed_or_not(sampler, serving, monkeypatch):
    go_on = threading.Event()
    make = sampler.batch

    def waiting(*args, **settings):
        batch = make(*args, **settings)
        step = batch.step
        batch.step = lambda: (go_on.wait(), step())[1]
        return batch

    monkeypatch.setattr(sampler, "batch", waiting)
    monkeypatch.setattr(app_module, "GONE_SECONDS", 0.05)
    with serving(sampler) as (service, url):
        for stream in (False, True):
            body = json.dumps({**PLAIN, "stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            client = connect(url, head + body)
            until(lambda: service.open_samples == 1)
            client.close()
            until(lambda: service.open_samples == 0)
        go_on.set()


def until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "data", [b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"]
)
def test_a_request_that_never_ends_loses_its_connection(server, monkeypatch, data):
    monkeypatch.setattr(TimedProtocol, "receive_seconds", 0.2)
    with connect(server[1], data) as client:
        client.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert ask(server[1], PLAIN)[0] == 200


def test_a_request_that_takes_too_long_is_answered(sampler, serving):
    with serving(sampler, seconds=0.0) as (service, url):
        assert ask(url, PLAIN)[0] == 504
        until(lambda: service.open_samples == 0)


def test_a_large_prompt_is_read_beside_the_loop_and_refused(server, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()
    read = app_module.CompletionRequest.read

    def slowly(body):
        if len(body) > app_module.SMALL_BYTES:
            reading.set()
            assert go_on.wait(60)
        return read(body)

    monkeypatch.setattr(app_module.CompletionRequest, "read", slowly)
    found = {}
    large = threading.Thread(target=lambda: found.update(large=ask(server[1], {**PLAIN, "prompt": "a" * 2**20})))
    large.start()
    assert reading.wait(60)
    assert ask(server[1], PLAIN)[0] == 200, "others are answered meanwhile"
    monkeypatch.setattr(app_module, "LARGE_BYTES", 2**20)
    assert ask(server[1], {**PLAIN, "prompt": "a" * 2**16})[0] == 429
    go_on.set()
    large.join()
    assert found["large"][0] == 400 and "characters" in found["large"][1]["error"]["message"]
