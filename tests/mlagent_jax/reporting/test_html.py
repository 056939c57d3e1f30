"""The report page, read as a parser reads it: complete, self-contained, and deaf to what scripts printed."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from environments.protocol import OutcomeKind
from mlagent_jax import report
from mlagent_jax.reporting import html, page_data, tour
from mlagent_jax.reporting.findings import learned, waited
from mlagent_jax.reporting.model_card import write_model_card
from mlagent_jax.reporting.page_data import Limits
from mlagent_jax.runtime import jsonl

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script>{{ 7 * 7 }}\u2028\u2029\ud800\x00&lt;b&gt;"
)


class Page(HTMLParser):
    """Tags with their attributes, and the text of script and style blocks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.blocks: list[tuple[str, dict, str]] = []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = (tag, dict(attrs))
            self.blocks.append((*self._open, ""))

    def handle_data(self, data):
        if self._open:
            self.blocks[-1] = (*self._open, self.blocks[-1][2] + data)

    def handle_endtag(self, tag):
        if self._open and tag == self._open[0]:
            self._open = None

    @property
    def run(self):
        """Of a page of one run, that run."""
        (run,) = self.data["runs"]
        return run

    @property
    def data(self):
        return json.loads(next(text for _, attributes, text in self.blocks if attributes.get("id") == "data"))


def hostile_run(workdir):
    """Every text of a run's files is hostile: what policies and scripts wrote, and names besides."""

    def poison(value, key=""):
        if key == "state":  # Text that is not Unicode has no id, so no state holds it.
            return value
        if isinstance(value, dict):
            return {name: poison(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE if isinstance(value, str) and key not in ("kind", "policy", "split", "stage") else value

    for path in sorted(workdir.rglob("*.jsonl")):
        jsonl.replace(path, [poison(record) for record in jsonl.read(path)])
    facts = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps(poison(facts)))
    return workdir


@pytest.fixture
def page(finished_run):
    """Writes the report of a run and parses it."""

    def write(workdir=None):
        workdir = workdir or finished_run()
        html.write_report(workdir)
        return Page((workdir / "report" / "index.html").read_text())

    return write


def test_the_page_holds_curves_figures_trajectories_and_the_run(page):
    data = page().run
    assert {(curve["stage"], curve["name"]) for curve in data["curves"]} >= {
        ("sft", "loss"),
        ("rl", "reward"),
        ("rl", "kl"),
    }
    assert set(data["summary"]["policies"]) == {"base", "sft", "rl"}
    assert {item["source"] for item in data["trajectories"]} == {
        "collect",
        "rl",
        "evaluate base",
        "evaluate sft",
        "evaluate rl",
    }
    step = data["trajectories"][0]["steps"][0]
    assert {"prompt", "action", "output", "kind", "reward"} <= set(step)
    assert data["run"]["executions"] == 1352


def test_the_page_needs_nothing_but_itself(page):
    for tag, attributes in page().tags:
        assert not {"src", "action", "data", "srcset"} & set(attributes), tag
        assert attributes.get("href", "#").startswith(("#", "data:"))


def test_the_policy_admits_the_pages_own_code_and_style_only(page):
    parsed = page()
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag, attributes, text in parsed.blocks:
        if "type" not in attributes:
            found = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{found}'" in policy


def test_the_pages_code_has_no_way_to_interpret_text(page):
    code = next(text for tag, attributes, text in page().blocks if tag == "script" and "type" not in attributes)
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|javascript:"
    )
    assert not re.search(forbidden, code)


def test_hostile_text_changes_neither_the_structure_of_the_page_nor_its_own_data(page, finished_run):
    clean = page()
    hostile = page(hostile_run(finished_run("other")))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in clean.tags]
    step = hostile.run["trajectories"][0]["steps"][0]
    assert step["prompt"] == step["action"] == step["output"] == HOSTILE
    raw = html.script_json({"text": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(raw)
    assert json.loads(raw)["text"] == HOSTILE


def test_a_hostile_folder_name_is_text(page, finished_run):
    parsed = page(finished_run("<img onerror=x>&amp;"))
    assert "img" not in [tag for tag, _ in parsed.tags]


def test_a_run_that_has_only_begun_has_a_page(page, tmp_path):
    data = page(tmp_path).run
    assert data["trajectories"] == data["curves"] == []


def test_the_expert_s_steps_are_put_together_to_trajectories(page):
    collected = [item for item in page().run["trajectories"] if item["source"] == "collect"]
    assert len(collected) == 12
    assert all(len(item["steps"]) == 4 for item in collected)


def test_the_sample_is_bounded_repeatable_and_even_over_tasks_and_outcomes(finished_run, outcome):
    workdir = finished_run(policies=())
    common = outcome(OutcomeKind.SCORED).to_dict()
    rare = outcome(OutcomeKind.MEMORY_LIMIT).to_dict()
    records = [
        {"task": "wine", "prompt": "", "action": "", "step": i, "outcome": rare if i == 700 else common}
        for i in range(1000)
    ]
    jsonl.replace(workdir / "trajectories" / "rl.jsonl", records)
    limits = Limits(trajectories=20, newest=5)
    data = page_data.RunReader(workdir, limits).read()
    shown = [item for item in data["trajectories"] if item["source"] == "rl"]
    assert len(shown) == 20
    assert data["totals"]["rl"] == 1000
    assert "memory_limit" in [item["steps"][0]["kind"] for item in shown]
    assert [item["step"] for item in shown] == sorted(item["step"] for item in shown)
    assert {item["step"] for item in shown} >= set(range(995, 1000))
    assert page_data.RunReader(workdir, limits).read() == data


def test_the_page_stays_small_whatever_a_script_prints(finished_run, outcome):
    workdir = finished_run(policies=())
    flood = {**outcome(OutcomeKind.SCORED).to_dict(), "observation": "x" * 200_000}
    record = {"task": "wine", "prompt": "p" * 100_000, "action": "a", "outcome": flood}
    jsonl.replace(workdir / "trajectories" / "rl.jsonl", [record] * 150)
    html.write_report(workdir)
    assert (workdir / "report" / "index.html").stat().st_size < 2_500_000


def test_a_long_text_keeps_its_head_and_tail_and_says_what_is_missing():
    text = "".join(map(str, range(1000)))
    cut = page_data.cut(text, 90)
    assert cut.startswith(text[:60])
    assert cut.endswith(text[-30:])
    assert f"{len(text) - 90} characters left out" in cut
    assert page_data.cut(text, len(text)) == text


def test_thin_curves_keep_their_peaks():
    points = [[step, float(step), 0.0] for step in range(10_000)]
    points[7777][2], points[1234][2] = 9.0, -9.0
    thin = page_data.thin(points, 200)
    assert len(thin) <= 200
    assert points[7777] in thin
    assert points[1234] in thin
    assert thin == sorted(thin)


def test_values_that_are_not_finite_are_left_out_of_curves():
    log = [
        {"stage": "rl", "step": 1, "seconds": 0.0, "kl": float("nan")},
        {"stage": "rl", "step": 2, "seconds": 1.0, "kl": 1},
    ]
    assert page_data.curves(log, 10) == [{"stage": "rl", "name": "kl", "points": [[2, 1.0, 1.0]]}]


def test_several_runs_are_reported_one_by_one_and_pooled(finished_run):
    workdirs = [finished_run(f"seed{seed}", seed=seed) for seed in range(2)]
    printed = report.report([str(workdir) for workdir in workdirs])
    assert "## 2 runs pooled" in printed
    for workdir in workdirs:
        path = workdir / "report" / "index.html"
        assert str(path) in printed
        assert Page(path.read_text()).run["name"] == workdir.name


def command(*arguments):
    """Runs `python -m mlagent_jax.report`."""
    root = Path(__file__).parents[3]
    program = [sys.executable, "-m", "mlagent_jax.report", *map(str, arguments)]
    return subprocess.run(program, cwd=root, capture_output=True, text=True)


def test_runs_of_other_settings_are_pooled_with_a_warning_into_a_file_of_its_own(finished_run, tmp_path):
    one, two = finished_run("one"), finished_run("two", seed=1)
    facts = json.loads((two / "run.json").read_text())
    facts["config"]["rl"]["clip"] = 0.3
    facts["config"]["workers"] = {"slots": 9}
    (two / "run.json").write_text(json.dumps(facts))
    printed = report.report([str(one), str(two)], output=str(tmp_path / "pages" / "mine.html"))
    assert "WARNING" in printed and "rl.clip 0.2 and 0.3" in printed and "slots" not in printed
    assert (tmp_path / "pages" / "mine.html").exists()
    assert not list(one.glob("report/comparison*")) and not (tmp_path / "comparison.html").exists()


def test_one_sentence_says_what_was_learned_and_how_sure_that_is():
    def summary(change, interval):
        policies = {name: {"step_reward": {"held_out": {"mean": mean}}} for name, mean in (("sft", 0.4), ("rl", 0.45))}
        difference = {"held_out": {"mean": change, "ci95": interval}}
        return {"policies": policies, "comparisons": {"rl_minus_sft": {"step_reward": difference}}}

    told = learned(summary(0.05, [0.01, 0.09]))
    assert told == (
        "rl is better than sft by +0.050 (95% interval +0.010, +0.090): mean step reward 0.400 to 0.450 on tasks never "
        "trained on."
    )
    assert learned(summary(0.05, [-0.01, 0.09])).startswith("rl is not told apart from sft: +0.050")
    assert learned(summary(-0.05, [-0.09, -0.01])).startswith("rl is worse than sft by -0.050")
    assert "needs two policies" in learned({"policies": {"sft": {}}, "comparisons": {}})


def test_the_card_of_an_export_has_base_tasks_settings_results_and_licence(finished_run, tmp_path):
    workdir = finished_run()
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    config = {"seed": 3, "policy": {"checkpoint": str(base)}, "tasks": {"train": ["wine"], "micro_train": 4}}
    (workdir / "config.json").write_text(json.dumps(config))
    card = write_model_card(workdir, workdir / "export", "rl").read_text()
    assert card.startswith("---\nlibrary_name: transformers") and "\nlicense: llama3.1\n" in card
    for part in (
        str(base),
        "wine, and 4 generated ones",
        "| `seed` | 3 |",
        "rl is not told apart from sft",
        "## Licence",
    ):
        assert part in card
    (workdir / "config.json").write_text("{}")
    assert "license: apache-2.0" in write_model_card(workdir, workdir / "export", "sft").read_text()


@pytest.mark.parametrize(
    ("expert", "trajectories", "said"), [("scripted", "", True), ("endpoint", "", False), ("scripted", "others", False)]
)
def test_only_the_steps_of_the_scripted_expert_are_said_to_hold_no_human_data(
    tmp_path, finished_run, expert, trajectories, said
):
    workdir = finished_run()
    config = {"collect": {"expert": expert}, "pool": {"trajectories": trajectories}}
    (workdir / "config.json").write_text(json.dumps(config))
    card = write_model_card(workdir, tmp_path / "export", "rl").read_text()
    assert f"Steps of the expert `{expert}`" in card
    assert ("No human data." in card) == said


def test_a_first_run_shows_what_was_learned_two_trajectories_and_what_to_try(finished_run, capsys):
    workdir = finished_run()
    tour.show(workdir, Console(width=200, force_terminal=False))
    shown = capsys.readouterr().out
    assert "mean step reward" in shown and "a middle trajectory of sft, and of rl" in shown
    assert "+model = RandomForestClassifier" in shown and "a gain of" in shown
    assert f"{workdir}/report/index.html" in shown
    assert f"python -m mlagent_jax.solve --checkpoint={workdir}" in shown
    for name in ("sft", "rl", "base"):
        (workdir / "evaluation" / f"{name}.jsonl").unlink()
    tour.show(workdir, Console(width=200, force_terminal=False))
    assert "needs two policies" in capsys.readouterr().out


def test_the_share_of_time_that_devices_waited_is_of_rl_alone():
    log = [
        {"stage": "sft", "seconds_wait": 9.0},
        {"stage": "rl", "seconds_sample": 2.0, "seconds_wait": 4.0, "seconds_update": 4.0},
    ]
    assert waited(log) == 0.4 and waited(log[:1]) is None


@pytest.mark.slow
def test_the_command_prints_the_figures_and_needs_no_jax(finished_run):
    workdir = finished_run()
    printed = json.loads(command(workdir, "--json").stdout)
    assert printed == json.loads((workdir / "report" / "summary.json").read_text())
    program = "import sys, mlagent_jax.report; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.slow
def test_the_command_names_a_folder_that_does_not_exist(tmp_path):
    done = command(tmp_path / "no-such")
    assert done.returncode == 1
    assert "no-such' does not exist" in done.stderr
    assert "Traceback" not in done.stderr
