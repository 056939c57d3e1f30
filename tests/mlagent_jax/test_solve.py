"""A search for a script of a person's own task: what it leaves, what stops it, and bad input in one line."""

import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

import environments
from mlagent_jax.agents.episodes import Agent, Reply
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.run import Settings
from mlagent_jax.search.session import search
from mlagent_jax.search.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
RENTS = ROOT / "docs" / "examples" / "rents"
HOSTILE = "</script><script>alert(1)</script>\x1b[31m [bold]"


def program(*arguments):
    return [sys.executable, "-m", "mlagent_jax.solve", *map(str, arguments)]


def command(*arguments):
    return subprocess.run(program(*arguments), cwd=ROOT, capture_output=True, text=True)


def edit(columns, printed):
    code = (
        'import pandas as pd\n\ntrain, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")\n'
        f"columns = {columns!r}\nprint({printed!r})"
    )
    arguments = json.dumps({"script_name": "train.py", "cell": "data"})
    return f"Action: Edit Script (Cell)\nAction Input: {arguments}\n```python\n{code}\n```"


@pytest.mark.slow
def test_the_best_script_runs_without_the_product_and_its_story_is_told(tmp_path, capsys):
    replies = [HOSTILE, edit(["area"], HOSTILE), edit(["area", "rooms", "floor"], "all"), edit(["nothing"], "")]

    class Scripted(Agent):
        def act(self, trajectories, depth):
            return [Reply(replies[min(t.index, len(replies)) - 1]) for t in trajectories]

    folder = tmp_path / "solved"
    settings = Settings(STRATEGIES.choose("greedy:drafts=4"), Budget.parse("3 executions"), 0)
    with environments.make(str(RENTS), cache_dir=tmp_path / "cache") as episode:
        score, status = search(episode, Scripted(), folder, settings, agent_name="mine", console=Console())
    shown = capsys.readouterr().out
    assert status == 0
    assert "\x1b[31m" not in shown
    assert [json.loads(line)["outcome"]["kind"] for line in (folder / "steps.jsonl").read_text().splitlines()] == [
        "invalid_action",
        "scored",
        "scored",
        "script_error",
    ]
    assert score == json.loads((folder / "score.json").read_text())
    assert score["improved"]
    assert score["score"] < score["start_score"]
    assert score["report_score"] < score["start_report_score"]
    assert score["judged_scripts"] == 1
    assert score["selection"]["candidates"] == 2
    assert score["operators"]["draft"]["steps"] == 4
    assert "+++ best/train.py" in (folder / "solution.diff").read_text()
    page = (folder / "page.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gives the submission that was scored" in done.stdout
    (folder / "submission.csv").write_text("id,rent\n1,2\n")
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "its submission differs" in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_the_best_so_far_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "solved"
    arguments = [
        *("--agent=expert", "--task=wine", f"--output={folder}", f"--cache_dir={tmp_path / 'cache'}"),
        *("--sandbox=bubblewrap", "--strategy=evolution", "--ensemble=4"),
    ]
    with subprocess.Popen(
        program(*arguments, "--budget=500 executions"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = [line for line, _ in zip(process.stdout, range(6), strict=False)]
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    assert "Stopped by a signal" in said
    before = json.loads((folder / "score.json").read_text())
    assert 6 <= before["steps"] < 500
    done = command(*arguments, f"--budget={before['executions'] + 2} executions")
    assert done.returncode == 0, done.stderr
    after = json.loads((folder / "score.json").read_text())
    assert after["executions"] == before["executions"] + 2
    if after["ensemble"]:
        assert after["ensemble"]["score"] < after["score"]
        assert (folder / "ensemble" / "blend.py").exists()
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert lines[0].startswith(f"1 draft of 0, {steps[0]['outcome']['action_input']['cell']}")


@pytest.mark.slow
def test_a_table_becomes_a_task_and_another_table_does_not_take_its_folder(tmp_path):
    rng = random.Random(0)
    rows = [(rng.gauss(0, 1), rng.gauss(0, 1), rng.choice("ab")) for _ in range(400)]
    lines = [f"{x},{y},{z},{3 * x - y * y + 2 * (z == 'a') + rng.gauss(0, 0.3)}" for x, y, z in rows]
    for name in ("sales", "other"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["x,y,z,price", *lines]) + "\n")
    arguments = (
        *("--agent=expert", "--target=price", f"--output={tmp_path / 'out'}", f"--cache_dir={tmp_path / 'cache'}"),
        *("--sandbox=bubblewrap", "--budget=2 executions"),
    )
    done = command(f"--task={tmp_path / 'sales.csv'}", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "score.json").read_text())["executions"] == 2
    assert (tmp_path / "out" / "task" / "task.yaml").exists()
    assert command(f"--task={tmp_path / 'sales.csv'}", *arguments).returncode == 0
    done = command(f"--task={tmp_path / 'other.csv'}", *arguments)
    assert done.returncode == 1
    assert "choose another --output" in done.stderr


class Model(http.server.BaseHTTPRequestHandler):
    """A language model that always proposes the same edit; 700 prompt tokens and 300 of the answer."""

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.server.prompts.append(prompt)
        thoughts = "Reflection: a\nResearch Plan and Status: b\nFact Check: c\nThought: d\n"
        choice = {"message": {"role": "assistant", "content": thoughts + edit(["area"], "x")}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 700, "completion_tokens": 300}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice], "usage": usage}).encode())

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_an_endpoint_searches_for_the_money_it_was_given_and_is_told_what_was_tried(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        server.prompts = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        done = command(
            *(f"--endpoint=http://127.0.0.1:{server.server_address[1]}/v1", "--model=m", f"--task={RENTS}"),
            *(f"--output={tmp_path / 'out'}", f"--cache_dir={tmp_path / 'cache'}", "--sandbox=bubblewrap"),
            *("--strategy=greedy:drafts=1", "--budget=0.01 USD", "--prompt_price=1", "--completion_price=1"),
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    # What a request may cost at most is set aside before it is sent.
    assert 2 <= score["steps"] <= 10
    assert score["cost"] == pytest.approx(0.001 * score["steps"])
    assert "The next step is a draft" in server.prompts[0]
    assert "Tried so far" not in server.prompts[0]
    assert "The next step is an improvement" in server.prompts[1]
    assert "- draft, Edit Script (Cell): " in server.prompts[1] or "- draft, data: " in server.prompts[1]


@pytest.mark.slow
def test_a_tiny_checkpoint_works_on_a_folder(speaker, tmp_path):
    done = command(
        *(f"--checkpoint={speaker}", f"--task={RENTS}", f"--output={tmp_path / 'out'}", "--budget=200 tokens"),
        *(f"--cache_dir={tmp_path / 'cache'}", "--profile=compact", "--sandbox=bubblewrap"),
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "1 draft of 0, no action: invalid action" in said
    assert "Nothing better was found, since no action led to an execution" in said
    assert not json.loads((tmp_path / "out" / "score.json").read_text())["improved"]
    assert (tmp_path / "out" / "best" / "train.py").read_text() == (RENTS / "env" / "train.py").read_text()


@pytest.mark.slow
def test_an_agent_that_could_not_be_asked_is_an_error(speaker, tmp_path):
    done = command(
        *(f"--checkpoint={speaker}", f"--task={RENTS}", f"--output={tmp_path / 'out'}", "--max_prompt_tokens=8"),
        *(f"--cache_dir={tmp_path / 'cache'}", "--profile=compact", "--sandbox=bubblewrap"),
    )
    assert done.returncode == 1
    assert "no action was proposed" in done.stderr
    assert "raise --max_prompt_tokens" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=/no/such", f"--task={RENTS}"], "does not exist"),
        (["--agent=expert", "--task=./no-such-task"], "no-such-task"),
        ([f"--task={RENTS}"], "name one agent"),
        (["--agent=expert", "--task=wine", "--budget=soon"], "--budget has 'soon'"),
        (["--agent=expert", "--task=wine", "--strategy=gredy"], "Did you mean 'greedy'"),
        (["--agent=expert", "--task=wine", "--fleet"], "$MLAGENT_QUEUE"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, message, monkeypatch):
    monkeypatch.delenv("MLAGENT_QUEUE", raising=False)
    done = command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
