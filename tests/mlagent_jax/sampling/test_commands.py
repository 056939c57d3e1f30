"""The commands and snippets of docs/sampling.md do what it says."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from environments.interfaces.replies import read_actions
from mlagent_jax.sampling import Sampler, load
from mlagent_jax.sampling.lines import read_conversations, read_prompts

PAGE = (Path(__file__).parents[3] / "docs" / "sampling.md").read_text()
FENCES = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = {
    line.split()[2]: line for _, text in FENCES for line in text.replace("\\\n", "").splitlines() if " -m " in line
}
SNIPPETS = [text for language, text in FENCES if language == "python"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}


def arguments(module, checkpoint):
    """Of the page's command of that name, for this interpreter and checkpoint."""
    return [sys.executable, *shlex.split(COMMANDS[module].replace("runs/quickstart", str(checkpoint)))[1:]]


@pytest.mark.slow
def test_the_sample_command_prints_what_the_library_makes(speaker, tmp_path):
    prompts = ["def f(x):", [70, 71]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n\n" for prompt in prompts))
    done = subprocess.run(
        arguments("mlagent_jax.sample", speaker),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["index"], row["sample"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = Sampler(*load(speaker)).generate(
        prompts, n=2, max_new_tokens=64, temperature=0.8, stop=["Observation:"], seed=1
    )
    for row, sample in zip(rows, [sample for samples in expected for sample in samples], strict=True):
        assert (row["text"], row["token_ids"]) == (sample.text, sample.token_ids)
        assert row["finish_reason"] == sample.finish_reason
        assert row["logprobs"] == pytest.approx(sample.log_probs, abs=1e-5)


@pytest.mark.slow
def test_the_server_command_answers_the_page_s_client(speaker, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = arguments("mlagent_jax.serve", speaker)
    command[command.index("--port") + 1] = str(port)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "--slots=4"], cwd=tmp_path, env=ENVIRONMENT, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        exec(SNIPPETS[1].replace("8000", str(port)), {})
    finally:
        process.terminate()
        process.wait(60)
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_page_s_library_snippet_runs(speaker, capsys):
    exec(SNIPPETS[0].replace("runs/quickstart", str(speaker)), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', '{"prompt": [1, "a"]}', "[]"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 2 is n"):
        read_prompts(path)


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b", "\x1c"], ids=ascii)
def test_a_line_ends_at_a_newline_alone(tmp_path, letter):
    path = tmp_path / "prompts.jsonl"
    rows = [json.dumps({"prompt": text, "action": text}, ensure_ascii=False) for text in (f"a{letter}b", "c")]
    text = "\n".join(rows)
    if ord(letter) < 32:  # JSON has it escaped
        text = text.replace(letter, json.dumps(letter)[1:-1])
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompts(path) == read_actions(str(path)) == [f"a{letter}b", "c"]


def test_lines_of_conversations(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "system", "content": "b"}]}\n')
    assert read_conversations(str(path)) == [
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "b"}],
    ]
    for line in ('{"messages": []}', '{"messages": [{"role": "user"}]}', '{"prompt": [1]}', "[]"):
        path.write_text(line)
        with pytest.raises(ValueError, match=r"chats.jsonl, line 1 is not"):
            read_conversations(str(path))
