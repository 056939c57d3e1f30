"""The report of a run that goes on: what is new is read, once, and nobody but this machine's pages gets it."""

import json

import pytest
from starlette.testclient import TestClient

from mlagent_jax import report
from mlagent_jax.reporting.page_data import RunReader
from mlagent_jax.reporting.server import HEADERS, Report, make_app
from mlagent_jax.runtime import jsonl

from .serving import add_step


@pytest.fixture
def client(live_run):
    with TestClient(make_app(Report([live_run], 0.001)), base_url="http://127.0.0.1:8100") as client:
        yield client


def test_what_is_new_is_told_and_what_is_not_keeps_its_version(client, live_run):
    first = client.get("/live.json").json()
    assert "trajectories" not in first["runs"][0]
    assert client.get("/live.json").json()["trajectories"] == first["trajectories"]
    add_step(live_run, step=4)
    later = client.get("/live.json").json()
    assert later["trajectories"] != first["trajectories"]
    assert later["runs"][0]["totals"]["rl"] == first["runs"][0]["totals"]["rl"] + 1
    assert "act 4" in [item["steps"][0]["action"] for item in client.get("/trajectories.json").json()[0]]


def test_a_page_under_another_name_is_refused_and_nobody_may_embed_what_is_served(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    answer = client.get("/live.json")
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "connect-src &#39;self&#39;" in client.get("/").text
    assert answer.headers["content-type"] == "application/json"


def test_a_broken_file_is_an_error_that_names_it_and_the_server_goes_on(client, live_run):
    whole = (live_run / "run.json").read_text()
    (live_run / "run.json").write_text("{")
    answer = client.get("/live.json")
    assert answer.status_code == 503
    assert "run.json is not JSON" in answer.text
    (live_run / "run.json").write_text(whole)
    assert client.get("/live.json").status_code == 200


def test_a_resume_that_forgets_steps_is_read_from_the_start_again(live_run):
    reader = RunReader(live_run)
    assert reader.read()["totals"]["rl"] == 3
    path = live_run / "trajectories" / "rl.jsonl"
    jsonl.replace(path, jsonl.read(path)[:1])
    found = reader.read()
    assert found["totals"]["rl"] == 1
    assert found["states"]["drawn"] == 1


def test_passwords_of_urls_do_not_reach_the_page(live_run):
    config = json.loads((live_run / "config.json").read_text())
    config["workers"]["queue"] = "postgresql://me:secret@127.0.0.1:1/mlagent"
    (live_run / "config.json").write_text(json.dumps(config))
    found = RunReader(live_run).read()
    assert "secret" not in json.dumps(found)
    assert found["fleet"]["error"]


def test_serving_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report.serve([str(tmp_path / "no")], 0, 1.0)
    with pytest.raises(ValueError, match="holds no run"):
        report.report([str(tmp_path)])
    assert not list(tmp_path.iterdir())
