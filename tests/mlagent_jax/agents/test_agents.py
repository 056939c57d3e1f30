"""Agents that are language models: one behind our own server, whose faults end trajectories and never make data; and
our own policy, directly."""

import dataclasses
import http.server
import socket
import threading
import time
import types
import urllib.request

import pytest
import uvicorn

from environments import tasks
from environments.actions.openai_http import Completion, EndpointError
from environments.protocol import State
from environments.tasks.generated.scripts import Script
from mlagent_jax.agents.actor import Actor, seed_of
from mlagent_jax.agents.endpoint import EndpointClient
from mlagent_jax.agents.episodes import Trajectory
from mlagent_jax.agents.factory import EndpointAgent, PolicyAgent
from mlagent_jax.agents.prompts import Renderer
from mlagent_jax.sampling import Distribution, Sampler, SamplerConfig, TokenSampler, load
from mlagent_jax.serving.app import make_app
from mlagent_jax.serving.service import Limits, Service
from mlagent_jax.settings.hosts import EndpointConfig
from mlagent_jax.settings.policy import PromptConfig

SPEC = tasks.get("micro-rings-0").spec
STATE = State("micro-rings-0@1", (), "snapshot", Script("LogisticRegression(C=0.01)").text(), 0.5)
SPECS = {STATE.task: SPEC}
PROMPT = PromptConfig(max_prompt_tokens=2000, max_action_tokens=12)


@pytest.fixture(scope="module")
def loaded(speaker):
    return load(speaker)


@pytest.fixture(scope="module")
def served(loaded):
    """Address of our own server, with the tiny checkpoint's own length limit lifted by short prompts."""
    sampler = Sampler(*loaded, slots=4)
    service = Service(sampler, Limits(prompt_tokens=150, new_tokens=32, slots=4, waiting=64))
    server = uvicorn.Server(uvicorn.Config(make_app(service, "policy", None), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Our server with faults before it: of every four requests one waits too long, one is one too many, one is cut."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            turn = next(self.server.turns)
        if turn % 4 == 0:
            self.server.release.wait(20)
            return
        if turn % 4 == 1:
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        request = urllib.request.Request(self.server.real + "/chat/completions", body)
        with urllib.request.urlopen(request) as response:
            answer = response.read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer[:40] if turn % 4 == 2 else answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def unreliable(served):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unreliable) as server:
        server.daemon_threads = True
        server.real, server.lock, server.release = served, threading.Lock(), threading.Event()
        server.turns = iter(range(10**6))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.release.set()
        server.shutdown()


def wave(count):
    return [Trajectory("train", i, STATE, f"0/train/rings/{i}") for i in range(count)]


def ask(url, folder, trajectories, must_answer=True, depth=0, **settings):
    """The agent's answers, to a prompt that the tiny checkpoint has room for."""
    config = EndpointConfig(
        url=url, model="policy", max_tokens=12, concurrency=4, **{"timeout_seconds": 60.0, "attempts": 2, **settings}
    )
    with EndpointClient(config, folder, {}) as client:
        agent = EndpointAgent(client, lambda state: "Action:", lambda t, depth: seed_of(t.seed, depth), must_answer)
        return agent.act(trajectories, depth)


def test_our_own_server_is_an_agent_and_faults_before_it_change_nothing(served, unreliable, tmp_path):
    moves = ask(served, tmp_path / "well", wave(8))
    assert len({move.text for move in moves}) > 1, "every trajectory has a seed of its own"
    assert [move.text for move in ask(served, tmp_path / "other", wave(8))] == [move.text for move in moves]
    faulty = {"attempts": 30, "backoff_seconds": 0.001, "timeout_seconds": 1.0}
    assert ask(unreliable, tmp_path / "faulty", wave(8), **faulty) == moves
    assert ask("http://127.0.0.1:9/v1", tmp_path / "faulty", wave(8)) == moves, "answers are kept"


def test_a_trajectory_without_an_answer_ends_and_no_answer_at_all_is_an_error(served, tmp_path):
    trajectories = wave(3)
    ask(served, tmp_path, trajectories[:2])
    closed = "http://127.0.0.1:9/v1"
    first, second, third = ask(closed, tmp_path, trajectories, attempts=1)
    assert (first is None, second is None, third) == (False, False, None)
    with pytest.raises(EndpointError, match="attempt 1 of 1"):
        ask(closed, tmp_path, trajectories[2:], attempts=1)
    assert ask(closed, tmp_path, trajectories[2:], must_answer=False, depth=1, attempts=1) == [None]
    with pytest.raises(EndpointError, match="attempt 1 of 1"):  # it is down from the start: no evaluation of nothing
        ask(closed, tmp_path, trajectories[2:], must_answer=False, attempts=1)


def test_our_own_policy_is_an_agent_whose_actions_are_the_same_again(loaded):
    model, tokenizer = loaded
    settings = SamplerConfig(
        max_new_tokens=12,
        distribution=Distribution(1.0, 0, 1.0),
        slots=4,
        stop_token_ids=(tokenizer.eos_id,),
        pad_id=tokenizer.pad_id,
        compute_dtype="float32",
    )
    graph, params = model.graph, model.params
    actor = Actor(TokenSampler(graph, settings), Renderer(tokenizer, PROMPT, SPECS), 0)
    agent = PolicyAgent(actor, params, lambda t, depth, place: f"test/{depth}/{place}")
    actions = agent.act(wave(3), 0)
    assert len({action.text for action in actions}) == 3
    assert agent.act(wave(3), 0) == actions == actor.act(params, [STATE] * 3, 1, "test/0")
    assert [agent.fits(state) for state in (STATE, dataclasses.replace(STATE, script=STATE.script * 200))] == [1, 0]


def test_what_a_model_goes_on_to_invent_is_not_its_action():
    said = Completion("Action: Execute Script\nObservation: a score of 1.0", "stop")
    client = types.SimpleNamespace(chat_many=lambda conversations, seeds: [said], config=EndpointConfig())
    agent = EndpointAgent(client, lambda state: "prompt", lambda trajectory, depth: 0)
    assert [reply.text for reply in agent.act([Trajectory("train", 0, STATE)], 0)] == ["Action: Execute Script"]
