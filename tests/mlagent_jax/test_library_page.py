"""The blocks of docs/library.md run in order, as one program."""

import re
from pathlib import Path

import pytest

from mlagent_jax.trajectories.record import Record
from mlagent_jax.trajectories.store import Writer

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
ACTION = (
    'Action: Edit Script (Cell)\nAction Input: {"script_name": "train.py", "cell": "model"}\n'
    "```python\nfrom sklearn.svm import SVC\nmodel = SVC(probability=True)\n```"
)


@pytest.mark.slow
def test_the_blocks_of_the_page_run_in_order(tmp_path, speaker, capsys):
    values = {
        "action": ACTION,
        "cache": str(tmp_path / "cache"),
        "checkpoint": str(speaker),
        "folder": str(tmp_path),
        "workdir": str(tmp_path / "run"),
    }
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for number, block in enumerate(blocks):
        exec(compile(block, str(PAGE), "exec"), values)
        if number == 0:  # the step just taken is what a run recorded
            info = values["info"]
            record = Record("collect", "train", "micro-rings-0", 0, 0, "", info["state"], ACTION, info["outcome"])
            with Writer(tmp_path / "run" / "trajectories" / "collect") as writer:
                writer.append([record])
    assert values["info"]["outcome"].kind == "scored"
    assert len(values["completions"]) == 4
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert float(values["metrics"].read()["ratio"].value) == pytest.approx(1.0, abs=1e-3)
    assert [step.outcome.kind for step in values["episodes"][0].steps] == ["scored", "no_edit"]
