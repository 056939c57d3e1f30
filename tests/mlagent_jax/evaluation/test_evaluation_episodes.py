"""Agents by name, and whole episodes of those that need no weights, on real executions."""

import http.server
import json
import threading
from types import SimpleNamespace

import pytest

from environments.protocol import Job, Outcome, OutcomeKind, Scale, State
from mlagent_jax.agents.episodes import Reply, Step, Trajectory
from mlagent_jax.agents.scripted import cell_edit
from mlagent_jax.evaluation import episodes
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.runtime.interruption import Interruption
from mlagent_jax.settings.agent_names import AgentSpec, parse_agent
from mlagent_jax.settings.schema import default_config, freeze
from mlagent_jax.train import run_stages


def test_names_say_what_an_agent_is():
    assert parse_agent("expert") == AgentSpec("expert", "expert")
    assert parse_agent("rl@16") == AgentSpec("rl@16", "rl", step=16)
    assert parse_agent("gpt=endpoint") == AgentSpec("gpt", "endpoint")
    assert parse_agent("hf:runs/rl/export") == AgentSpec("rl-export", "hf", "runs/rl/export")
    assert parse_agent("mine=hf:/x") == AgentSpec("mine", "hf", "/x")
    for wrong in ("best", "hf:", "endpoint:x", "rl=hf:/x", "../x=endpoint"):
        with pytest.raises(ConfigError, match=r"evaluate\.policies names"):
            parse_agent(wrong)


def test_a_config_names_each_agent_once_and_an_endpoint_with_its_address():
    config = default_config()
    config.evaluate.policies = ("hf:a/b", "hf:a/b/")
    with pytest.raises(ConfigError, match="two agents called 'a-b'"):
        freeze(config)
    config.evaluate.policies = ("endpoint",)
    with pytest.raises(ConfigError, match=r"config\.endpoint\.url is empty"):
        freeze(config)


class Model(http.server.BaseHTTPRequestHandler):
    """Sets a better model first, then hands in."""

    asked: list = []  # noqa: RUF012 - of the server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        edit = cell_edit("train.py", "model", "from sklearn.svm import SVC\nmodel = SVC(probability=True)")
        first = "Results:" not in body["messages"][0]["content"]
        text = edit if first else 'Action: Final Answer\nAction Input: {"final_answer": "done"}'
        answer = {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 100},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_expert_endpoint_and_nothing_play_and_a_second_start_asks_nothing_again(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = default_config()
    config.stages = ("evaluate",)
    config.tasks.train, config.tasks.held_out = ("micro-rings-0",), ()
    config.tasks.micro_train = config.tasks.micro_held_out = 0
    config.workers.sandbox, config.workers.slots = "bubblewrap", 2
    config.endpoint.url, config.endpoint.model = f"http://127.0.0.1:{server.server_port}/v1", "tiny"
    config.endpoint.prompt_price = 2.0
    config.evaluate.policies = ("expert", "nothing", "gpt=endpoint")
    config.policy.checkpoint = "runs/never/export"  # of which none of them is
    config.evaluate.states_held_in = config.evaluate.states_held_out = 0
    config.evaluate.trajectories, config.evaluate.steps = 2, 3
    run_stages(config, str(tmp_path / "run"), Interruption())
    table = json.loads((tmp_path / "run" / "report" / "benchmark.json").read_text())
    agents = table["agents"]
    assert agents["nothing"]["gain_avg"] == 0.0 and agents["nothing"]["valid_action_rate"] == 1.0
    assert agents["gpt"]["episodes"] == 2 and agents["gpt"]["prompt_tokens"] == 2 * 2 * 1000
    assert agents["gpt"]["cost"] == pytest.approx(2 * 2 * 1000 * 2.0 / 1e6)
    assert agents["expert"]["episodes"] == 2 and agents["expert"]["gain_avg"] >= 0.0
    asked = len(Model.asked)
    # As after a kill in the middle: nothing is recorded, and the queue and the answers are there.
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"done": []}))
    (tmp_path / "run" / "evaluation" / "gpt.jsonl").unlink()
    run_stages(config, str(tmp_path / "run"), Interruption())
    server.shutdown()
    assert len(Model.asked) == asked
    again = json.loads((tmp_path / "run" / "report" / "benchmark.json").read_text())
    assert again["tasks"][0]["cells"]["gpt"]["avg"] == table["tasks"][0]["cells"]["gpt"]["avg"]


def test_a_record_holds_what_a_benchmark_with_medals_reports():
    made = {"report_init": 0.5, "grade_report": lambda _: 0.25, "scale": SimpleNamespace(higher_is_better=False)}
    made["spec"] = SimpleNamespace(metric="error")
    plain = SimpleNamespace(**made, has_medals=False)
    ranked = SimpleNamespace(**made, has_medals=True, official=lambda _: {"medal": "gold", "score": 0.2})
    run = SimpleNamespace(
        tasks={"plain": plain, "ranked": ranked},
        store=SimpleNamespace(get=lambda _: b""),
        prompt=lambda state: "",
        config=SimpleNamespace(evaluate=SimpleNamespace(best_of=1, trajectories=1)),
    )
    played = {name: Trajectory("held_out", 0, State(f"{name}@1", (), "snapshot", "", 0.5)) for name in run.tasks}
    assert episodes._record(run, "x", played["ranked"])["official"] == {"medal": "none"}
    scored = Outcome(OutcomeKind.SCORED, "", "snapshot", "", 0.5, 0.4, Scale(0.5, 0.0, False), 0.2, submission="digest")
    for episode in played.values():
        episode.take(Step(Reply("better"), Job("run", -5, episode.state, 0, "better"), scored, 0.0))
    assert episodes._record(run, "x", played["ranked"])["official"] == {"medal": "gold", "score": 0.2}
    record = episodes._record(run, "x", played["plain"])
    assert "official" not in record and record["report_metric"] == 0.25
