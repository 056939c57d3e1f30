"""Checkpoints by hub id, from a hub of our own on this machine that speaks the real one's protocol."""

import collections
import dataclasses
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import types
import urllib.parse
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from mlagent_jax.checkpoints import hub, hugging_face
from mlagent_jax.runs.policies import checkpoint_policy
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.sampling import checkpoint
from mlagent_jax.settings.schema import Config

ERRORS = {"RepoNotFound": 404, "RevisionNotFound": 404, "GatedRepo": 403}


@dataclasses.dataclass
class Hub:
    """What the server has, and what it was asked for."""

    url: str
    folders: dict[tuple[str, str], Path]
    """By repository and commit."""
    names: dict[tuple[str, str], str]
    """Commit by repository and branch or tag."""
    gated: set[str]
    served: collections.Counter
    """Files that were downloaded, by (repository, commit, file)."""


class Handler(http.server.BaseHTTPRequestHandler):
    """`hub` is set by the fixture. The requests of `snapshot_download`: a revision's commit, its files, each file."""

    hub: Hub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = [urllib.parse.unquote(part) for part in urllib.parse.urlparse(self.path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        owner, name, kind, revision, *rest = parts[2:] if api else parts
        repository = f"{owner}/{name}"
        commit = self.hub.names.get((repository, revision), revision)
        if repository in self.hub.gated:
            return self.refuse("GatedRepo")
        if repository not in {known for known, _ in self.hub.folders}:
            return self.refuse("RepoNotFound")
        if (repository, commit) not in self.hub.folders:
            return self.refuse("RevisionNotFound")
        folder = self.hub.folders[repository, commit]
        if api:
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": oid(path)}
                for path in folder.iterdir()
            ]
            siblings = [{"rfilename": each["path"]} for each in files]
            found = {"revision": {"id": repository, "sha": commit, "siblings": siblings}, "tree": files}[kind]
            return self.answer(json.dumps(found).encode(), {"Content-Type": "application/json"})
        (file,) = rest
        if self.command == "GET":
            self.hub.served[repository, commit, file] += 1
        return self.answer((folder / file).read_bytes(), {"ETag": f'"{oid(folder / file)}"', "X-Repo-Commit": commit})

    def refuse(self, code):
        self.answer(b"", {"X-Error-Code": code}, ERRORS[code])

    def answer(self, body, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def oid(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def served(tmp_path, speaker, monkeypatch):
    """A hub with acme/speaker in two revisions, whose norms differ, and the cache of one who has not used it yet."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(speaker, first)
    (first / "README.md").write_text("# Speaker\n")
    (first / "pytorch_model.bin").write_bytes(b"the same weights again")
    shutil.copytree(first, second)
    weights = dict(safetensors.numpy.load_file(second / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    safetensors.numpy.save_file(weights, second / "model.safetensors", metadata={"format": "pt"})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    commits = {"first": "1" * 40, "second": "2" * 40}
    Handler.hub = Hub(
        url,
        folders={("acme/speaker", commits[name]): tmp_path / name for name in commits},
        names={("acme/speaker", "main"): commits["first"], ("acme/speaker", "feature/norms"): commits["second"]},
        gated={"acme/secret"},
        served=collections.Counter(),
    )
    # What HF_ENDPOINT and HF_HOME set when the library is imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler.hub
    server.shutdown()
    server.server_close()


def norm(params):
    return np.asarray(params["final_norm"]["scale"])


def test_a_repository_of_the_hub_is_what_its_folder_is(served, tmp_path):
    _, _, expected = hugging_face.load(tmp_path / "first")
    model, tokenizer = checkpoint.load("acme/speaker", stacked=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), model.params, expected))
    assert tokenizer.encode("def f(x):") == checkpoint.load(tmp_path / "first")[1].encode("def f(x):")
    files = {file for _, _, file in served.served}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not files & {"README.md", "pytorch_model.bin"}, "what nobody reads"


@pytest.mark.parametrize("revision", ["feature/norms", "2" * 40])
def test_a_revision_is_the_one_that_was_named(served, revision):
    run = types.SimpleNamespace(config=Config(), devices=types.SimpleNamespace(mesh=None, rules=None))
    named = checkpoint_policy(run, f"acme/speaker@{revision}", "policy.checkpoint")
    plain = checkpoint_policy(run, "acme/speaker", "policy.checkpoint")
    np.testing.assert_array_equal(norm(named.params), norm(plain.params) + 1)
    assert named.tokenizer.vocab_size == plain.tokenizer.vocab_size
    assert {commit[0] for _, commit, _ in served.served} == {"1", "2"}


def test_what_is_in_the_cache_is_not_downloaded_again_and_serves_without_the_hub(served):
    folder = hub.fetch("acme/speaker")
    before = dict(served.served)
    assert set(before.values()) == {1}
    assert hub.fetch("acme/speaker") == folder
    assert served.served == before
    served.gated.add("acme/speaker")  # as a hub that does not answer us any more
    assert hub.fetch("acme/speaker") == folder
    assert hub.fetch(folder) == folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme/nobody", r"no folder acme/nobody, and {url} has no repository 'acme/nobody' .*HF_TOKEN"),
        ("acme/secret", r"{url}/acme/secret is gated: ask for access on that page, and log in by `hf auth login`"),
        ("acme/speaker@v9", r"{url}/acme/speaker has no revision 'v9': name one of its branches, tags or commits"),
        ("no/such/folder", r"no/such/folder does not exist: name a folder, or a repository of the hub as OWNER/NAME"),
        ("/no/folder", r"/no/folder does not exist"),
    ],
)
def test_what_the_hub_does_not_give_is_told_with_field_value_and_remedy(served, name, message):
    run = types.SimpleNamespace(config=Config(), devices=types.SimpleNamespace(mesh=None, rules=None))
    with pytest.raises(ConfigError, match=message.replace("{url}", served.url)) as error:
        checkpoint_policy(run, name, "policy.checkpoint")
    assert str(error.value).startswith(f"config.policy.checkpoint names '{name}': ")
    assert not served.served


def test_without_a_network_the_way_round_it_is_told(served, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        FileNotFoundError, match=r"127\.0\.0\.1:9 did not give.*hf download acme/speaker --local-dir DIR"
    ):
        hub.fetch("acme/speaker")


@pytest.mark.slow
def test_the_programs_of_a_user_take_a_hub_id(served, tmp_path):
    """With the variables that a user sets, in processes of their own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
    root = Path(__file__).parents[3]
    environment["PYTHONPATH"] = str(root)  # with torch, which verify_hf.py compares with

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
        )

    done = run("tools/verify_hf.py", "acme/speaker@feature/norms", "--tokens=16")
    assert done.returncode == 0, done.stderr
    assert "16 tokens in float32" in done.stdout
    assert {commit[0] for _, commit, _ in served.served} == {"2"}
    done = run("tools/verify_hf.py", "acme/nobody")
    assert done.returncode == 1
    assert "error: no folder acme/nobody" in done.stderr.splitlines()[-1]
