"""The commands and snippets of README and docs, run for real: as they are written, in a checkout whose `runs/` holds
one small run under the names that the pages use. Arguments that follow make the work small."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import docs_commands
import needs
import pandas as pd
import pytest
from docs_commands import COMMANDS, IN_THE_TEXT, ROOT, SNIPPETS, Run, blocks, key_of
from postgres_server import PostgresServer, need_binaries

from environments.files.file_systems import cache_directory

pytestmark = pytest.mark.slow

FIRST = next(iter(COMMANDS))
THE_RUN = "runs/smoke"
ITS_NAMES = ("quickstart", "s0", "s1", "s2", "other", "other_board", "seed0", "seed1", "collect", "rl")
DATABASE = re.compile(r"postgresql://(?:(?P<role>\w+)@queue-host/mlagent|queue-host/mlagent|\.\.\.)")
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "without_torch"))),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "WANDB_MODE": "offline",
    "WANDB__SERVICE_WAIT": "300",  # of its own process, on a busy machine
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
PATIENCE = 900


def cache(folder):
    """Variables with which tasks are prepared in `folder`, and sandboxes' roots are where they are built once."""
    return {"XDG_CACHE_HOME": f"{folder}/cache", "MLAGENT_CACHE": str(cache_directory())}


class Checkout:
    """A folder that looks like this checkout and has runs of its own."""

    def __init__(self, folder):
        self.folder = folder
        for path in ROOT.iterdir():
            if path.name not in (".git", "runs"):
                (folder / path.name).symlink_to(path)
        (folder / "runs").mkdir()
        for name in ITS_NAMES:
            (folder / "runs" / name).symlink_to(Path(THE_RUN).name)
        (folder / "FOLDER").symlink_to(f"{THE_RUN}/export")
        (folder / "my-task").symlink_to(ROOT / "docs" / "examples" / "rents")
        (folder / "my_rewards.py").write_text(next(text for _, text in blocks("python") if "REWARDS.register" in text))
        (folder / "members.jsonl").write_text('{"rl.value_clip": 0.1, "seed": 3}\n')
        self._environment = (
            os.environ | ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"file://{folder}/mlruns"} | cache(folder)
        )

    def start(self, words):
        variables = []
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            variables.append(words[0].split("=", 1))
            words = words[1:]
        assert words[0] == "python"
        return subprocess.Popen(
            [sys.executable, *words[1:]],
            cwd=self.folder,
            env=self._environment | dict(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, words):
        process = self.start(words)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors[-3000:]
        return output + errors


def small(words, how):
    """What follows `words`: no setting that they have themselves is changed."""
    own = {word.partition("=")[0] for word in words}
    more = shlex.split(how.more)
    return [word for word in more if not (word.startswith("--config.") and word.partition("=")[0] in own)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    (command,) = (words for _, words in docs_commands.typed() if key_of(" ".join(words), COMMANDS) == FIRST)
    made.run([*command, *small(command, COMMANDS[FIRST])])
    return made


@pytest.fixture(scope="module")
def database():
    """A function from a URL of the pages to one of a server that is set up as docs/worker_fleet.md says."""
    import psycopg

    from environments.queue import open_queue

    server = PostgresServer(need_binaries())
    (page,) = (text for path, text in docs_commands.PAGES.items() if path.name == "worker_fleet.md")
    statements = re.search(r"```\n(CREATE ROLE .*?)```", page, re.DOTALL)[1]
    with psycopg.connect(server.url(), autocommit=True) as administrator:
        for statement in filter(None, map(str.strip, statements.split(";"))):
            administrator.execute(statement)

    def url(role="trainer"):
        return server.url("mlagent", role)

    open_queue(url()).close()  # The trainer makes the tables.
    yield url
    server.remove()


def commands():
    """Those that are run here, in their order."""
    found = [(key_of(" ".join(words), COMMANDS), words) for _, words in docs_commands.typed()]
    for key, how in COMMANDS.items():
        if isinstance(how, Run) and key != FIRST:
            for number, words in enumerate([words for its_key, words in found if its_key == key]):
                marks = [pytest.mark.postgres] if any("postgresql:" in word for word in words) else []
                yield pytest.param(how, words, id=f"{' '.join(words)[:90]} {number}", marks=marks)


@pytest.mark.parametrize(("how", "words"), list(commands()))
def test_a_command_does_its_work(how, words, checkout, request):
    words = [word for word in words if word != "..."]
    if any("postgresql:" in word for word in words):
        database = request.getfixturevalue("database")
        words = [DATABASE.sub(lambda found: database(found["role"] or "trainer"), word) for word in words]
    words = [re.sub("=PID$", f"={os.getpid()}", word).replace("=PRICE", "=1.5") for word in words]
    words += small(words, how)
    if how.serves:
        serve(checkout.start(words))
    else:
        assert checkout.run(words)


def serve(process):
    try:
        address = re.match(r"http://\S+", process.stdout.readline())
        assert address, process.communicate(timeout=PATIENCE)[1]
        with urllib.request.urlopen(address[0], timeout=PATIENCE) as page:
            assert b"<html" in page.read().lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", [text for text in IN_THE_TEXT.values() if isinstance(text, str)])
def test_a_program_of_the_text_does_its_work(command, checkout):
    assert checkout.run(shlex.split(command))


def test_the_runs_are_those_that_the_commands_name(checkout):
    """What the commands above left, in places that their pages name."""
    made = [
        *(THE_RUN + name for name in ("/report/index.html", "/export/model.safetensors", "/trajectories/rl.jsonl")),
        *(f"runs/{name}/trajectories/collect" for name in ("mine", "permuted", "list/000")),
        *("runs/noise/checkpoints/rl", "runs/board/evaluation", "runs/list/sweep.html", "mlruns"),
        *("exports/parquet", "exports/sharegpt/dataset_info.json", "runs/all/README.md"),
    ]
    assert [path for path in made if not (checkout.folder / path).exists()] == []


REPLY = 'Action: Execute Script\nAction Input: {"script_name": "train.py"}'
RUN_HERE = {text for _, text in docs_commands.blocks("python") if SNIPPETS.get(key_of(text, SNIPPETS)) == Run()}


@pytest.mark.parametrize("text", [pytest.param(text, id=text.splitlines()[0]) for text in sorted(RUN_HERE)])
def test_a_snippet_does_its_work(text, tmp_path, checkout, monkeypatch):
    if "sandbox=" in text:
        needs.sandbox("bubblewrap").close()
    for name, value in cache(checkout.folder).items():
        monkeypatch.setenv(name, value)
    names = {"reply_text": REPLY}
    exec(text, names)
    if "observation, reward" in text:
        assert 0.0 <= names["reward"] <= 1.0 and names["info"]["outcome"].kind == "no_edit"
    if "grade" in names:
        frame = pd.DataFrame({"rent": [100.0, 200.0]})
        assert names["grade"](frame, frame) == 0
    if "open_archive" in text:
        rows = "".join(f"{row},word {row},{row}\n" for row in range(20))
        with zipfile.ZipFile(tmp_path / "spooky-author-identification.zip", "w") as archive:
            archive.writestr("train.csv", f"id,text,score\n{rows}")
        for name in ("public", "private"):
            (tmp_path / name).mkdir()
        names["prepare"](tmp_path, tmp_path / "public", tmp_path / "private", 0)
        assert len(pd.read_csv(tmp_path / "private" / "answers.csv")) == 4
