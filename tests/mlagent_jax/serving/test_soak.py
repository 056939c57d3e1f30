"""Honest clients are all answered right while hostile ones do what they can."""

import json
import os
import random
import socket
import threading
import time
import urllib.error
import urllib.request

from mlagent_jax.serving.connections import TimedProtocol

ODD = [
    *({"top_k": 2**31}, {"top_p": 1e-45}, {"temperature": 1e300}, {"n": 10**9}, {"max_tokens": 2**80}),
    *({"prompt": "a" * 2**18}, {"prompt": [2**70]}, {"prompt": []}, {"stop": ["x" * 4000] * 16}, {"seed": -(2**90)}),
]


def ask(url, fields, timeout=300):
    """(status, texts)"""
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(fields).encode())
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, [choice["text"] for choice in json.loads(response.read())["choices"]]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, []


def hostile(url, rng, over):
    """One thing after the other that no honest client does."""
    host, _, port = url.removeprefix("http://").partition(":")
    while not over.is_set():
        kind = rng.randrange(4)
        try:
            if kind == 0:
                ask(url, {"prompt": "Next:\n", "max_tokens": 2, **rng.choice(ODD)}, timeout=60)
                continue
            with socket.create_connection((host, int(port)), timeout=5) as made:
                body = json.dumps({"prompt": "Next:\n", "max_tokens": 60, "stream": kind == 1}).encode()
                head = (
                    f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                )
                made.sendall((head + body)[: rng.randrange(5, len(head)) if kind == 2 else None])
                time.sleep(rng.random() * 0.3)  # and leaves
        except OSError:
            pass


def soak(server, clients, seconds):
    """Answers of honest clients, two thirds of `clients`: (seed, status, texts)."""
    _, url = server
    over, answers = threading.Event(), []
    bad = [threading.Thread(target=hostile, args=(url, random.Random(i), over)) for i in range(clients // 3)]

    def honest(place):
        end, seed = time.monotonic() + seconds, place
        while True:
            asked = {"prompt": "def f(x):", "max_tokens": 8, "seed": seed % 5, "temperature": 0.8, "top_p": 0.9}
            status, texts = ask(url, asked)
            if status != 429:  # told to come again
                answers.append((seed % 5, status, texts))
                seed += 1
            if time.monotonic() > end and status != 429:
                return
            if status == 429:
                time.sleep(0.1)

    good = [threading.Thread(target=honest, args=(place,)) for place in range(clients - len(bad))]
    for thread in (*bad, *good):
        thread.start()
    for thread in good:
        thread.join()
    over.set()
    for thread in bad:
        thread.join()
    return answers


def test_every_honest_request_is_answered_right(sampler, serving, monkeypatch):
    """MLAGENT_TEST_CLIENTS and MLAGENT_TEST_SECONDS set how many and how long; the full check takes 300 and 600."""
    clients = int(os.environ.get("MLAGENT_TEST_CLIENTS", "9"))
    seconds = float(os.environ.get("MLAGENT_TEST_SECONDS", "2"))
    monkeypatch.setattr(TimedProtocol, "receive_seconds", 2.0)
    settings = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.9}
    right = {seed: sampler.generate(["def f(x):"], seed=seed, **settings)[0][0].text for seed in range(5)}
    with serving(sampler, waiting=clients) as server:
        answers = soak(server, clients, seconds)
        assert server[0].healthy
    assert len(answers) >= clients - clients // 3
    assert {(status, tuple(texts) == (right[seed],)) for seed, status, texts in answers} == {(200, True)}
