"""A task of a user with the cells of the embedded tasks: the files that docs/bring_your_own_task.md names are all."""

import json
import subprocess
import sys

import numpy as np
import pytest

from environments.tasks.generated.ideas import ideas_for
from environments.tasks.generated.scripts import write_cells
from environments.tasks.task import TaskSpec


@pytest.mark.parametrize(
    ("metric", "classes", "columns", "model"),
    [("auc", 2, ["churned"], "LogisticRegression(C=0.01)"), ("mae", 0, ["rent"], "Ridge(alpha=10)")],
)
def test_a_table_in_the_documented_files_is_worked_on_by_the_starting_script(tmp_path, metric, classes, columns, model):
    write_cells(tmp_path, "tabular", model)
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 3))
    target = (inputs[:, 0] > 0).astype(int) if classes else inputs[:, 0]
    inputs[3, 1] = np.nan
    for name, rows in (("train", inputs[:40]), ("test", inputs[40:])):
        np.savetxt(data / f"{name}.csv", rows, delimiter=",", header="a,b,c", comments="")
    np.savetxt(data / "target.csv", target[:40], delimiter=",", header="y", comments="")
    about = {"metric": metric, "classes": classes, "outputs": 1, "grades": 0, "columns": columns, "ordered": False}
    (data / "about.json").write_text(json.dumps({**about, "period": 0, "horizon": 0}))
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"validation {metric}" in done.stdout
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert lines[0] == f"id,{columns[0]}" and [line.split(",")[0] for line in lines[1:]] == [str(i) for i in range(20)]


def test_the_librarys_ideas_suit_such_a_task(tmp_path):
    write_cells(tmp_path, "tabular", "LogisticRegression(C=0.01)")
    spec = TaskSpec("churn", "tabular", "train", "auc", "Who leaves?", "tabular, 40 rows", "mine")
    assert len(ideas_for(spec, (tmp_path / "train.py").read_text())) > 20
