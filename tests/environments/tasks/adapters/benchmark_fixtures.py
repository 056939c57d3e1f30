"""Small stand-ins for MLE-bench's package and for a folder of MLAgentBench, with the interfaces of the real ones.

The package: `mlebench.registry.registry` with `set_data_dir`, `list_competition_ids` and `get_competition`, whose
record has the fields of the real one; `mlebench.grade_helpers` with the grader (its function, the direction from the
leaderboard's ends, the rank with the medals' lines) and its error; `mlebench.utils.load_answers`.
"""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pandas as pd

PACKAGE = {
    "__init__.py": "",
    "utils.py": """
        import importlib
        import json
        from pathlib import Path
        import pandas as pd

        def load_answers(path):
            if path.suffix == ".csv":
                return pd.read_csv(path, float_precision="round_trip")
            if path.suffix == ".jsonl":
                return [json.loads(line) for line in Path(path).read_text().splitlines()]
            raise ValueError(f"Unsupported file format for answers: {path}")

        def import_fn(text):
            module, name = text.split(":")
            return getattr(importlib.import_module(module), name)
        """,
    "grade_helpers.py": """
        from mlebench.utils import import_fn

        class InvalidSubmissionError(Exception):
            pass

        class Grader:
            def __init__(self, name, grade_fn):
                self.name, self.grade_fn = name, import_fn(grade_fn)

            def is_lower_better(self, leaderboard):
                return bool(leaderboard["score"].iloc[0] < leaderboard["score"].iloc[-1])

            def rank_score(self, score, leaderboard):
                scores, teams = leaderboard["score"], len(leaderboard)
                at = lambda position: float(scores.iloc[max(1, int(position)) - 1])
                if teams < 100:
                    lines = at(0.1 * teams), at(0.2 * teams), at(0.4 * teams)
                elif teams < 250:
                    lines = at(10), at(0.2 * teams), at(0.4 * teams)
                elif teams < 1000:
                    lines = at(10 + int(0.002 * teams)), at(50), at(100)
                else:
                    lines = at(10 + int(0.002 * teams)), at(0.05 * teams), at(0.1 * teams)
                sign = -1 if self.is_lower_better(leaderboard) else 1
                reached = [score is not None and sign * score >= sign * line for line in lines]
                median = float(scores.median())
                found = {"above_median": score is not None and sign * score > sign * median, "median_threshold": median}
                for place, name in enumerate(("gold", "silver", "bronze")):
                    found[f"{name}_medal"] = reached[place] and not any(reached[:place])
                    found[f"{name}_threshold"] = lines[place]
                return found
        """,
    "registry.py": """
        from dataclasses import dataclass
        from pathlib import Path
        from typing import Any
        import yaml
        from mlebench.grade_helpers import Grader

        HERE = Path(__file__).parent

        @dataclass(frozen=True)
        class Competition:
            id: str
            name: str
            description: str
            grader: Grader
            answers: Path
            gold_submission: Path
            sample_submission: Path
            competition_type: str
            prepare_fn: Any
            raw_dir: Path
            private_dir: Path
            public_dir: Path
            checksums: Path
            leaderboard: Path

        class Registry:
            def __init__(self, data_dir=Path("/nonexistent")):
                self._data_dir = data_dir

            def set_data_dir(self, new_data_dir):
                return Registry(new_data_dir)

            def get_data_dir(self):
                return self._data_dir

            def list_competition_ids(self):
                return sorted(path.parent.name for path in (HERE / "competitions").glob("*/config.yaml"))

            def get_competition(self, competition_id):
                folder, data = HERE / "competitions" / competition_id, self._data_dir
                config = yaml.safe_load((folder / "config.yaml").read_text())
                answers = data / config["dataset"]["answers"]
                return Competition(
                    id=competition_id, name=config["name"],
                    description=(HERE.parent / config["description"]).read_text(),
                    grader=Grader(**config["grader"]), answers=answers, gold_submission=answers,
                    sample_submission=data / config["dataset"]["sample_submission"],
                    competition_type=config["competition_type"], prepare_fn=None, raw_dir=data / competition_id / "raw",
                    private_dir=data / competition_id / "prepared" / "private",
                    public_dir=data / competition_id / "prepared" / "public",
                    checksums=folder / "checksums.yaml", leaderboard=folder / "leaderboard.csv",
                )

        registry = Registry()
        """,
}  # fmt: skip
ROWS_GRADE = """
import numpy as np
from mlebench.grade_helpers import InvalidSubmissionError

def grade(submission, answers):
    if list(submission.columns) != ["key", "value"]:
        raise InvalidSubmissionError("Submission must have the columns key, value")
    both = answers.merge(submission, on="key", suffixes=("", "_guess"))
    print("rows", len(both))
    return float(np.sqrt(((both["value"] - both["value_guess"]) ** 2).mean()))
"""
RECORDS_GRADE = """
def grade(submission, answers):
    assert len(answers) == 3
    return sum(row["word"] in set(submission["word"]) for row in answers) / len(answers)
"""


def write_mlebench(root, data):
    """The package under `root`, and prepared data under `data`: `rows`, with an id a row and lower better, and
    `records`, whose answers are a JSON Lines file and higher is better."""
    for name, text in PACKAGE.items():
        path = root / "mlebench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    _competition(root, data, "rows", "private/answers.csv", "private/sample.csv", ROWS_GRADE, np.linspace(0.1, 2, 300))
    _competition(
        root,
        data,
        "records",
        "private/answers.jsonl",
        "public/sample_submission.csv",
        RECORDS_GRADE,
        np.linspace(1, 0, 50),
    )
    rng = np.random.default_rng(0)
    folder = data / "rows" / "prepared"
    table = pd.DataFrame({"key": [f"k{row}" for row in range(80)], "value": rng.normal(size=80)})
    table.to_csv(folder / "private" / "answers.csv", index=False)
    table.assign(value=0.0).to_csv(folder / "private" / "sample.csv", index=False)
    table.assign(value=table["value"] + 5)[:20].to_csv(folder / "public" / "train.csv", index=False)
    folder = data / "records" / "prepared"
    lines = [json.dumps({"id": row, "word": f"hidden{row}"}) for row in range(3)]
    (folder / "private" / "answers.jsonl").write_text("\n".join(lines))
    (folder / "public" / "sample_submission.csv").write_text("word\nhidden0\n")
    (folder / "public" / "page.jpg").write_bytes(b"")


def _competition(root, data, name, answers, sample, grade, leaderboard):
    folder = root / "mlebench" / "competitions" / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"id: {name}\nname: Test of {name}\ncompetition_type: simple\nawards_medals: true\nprizes: null\n"
        f"description: mlebench/competitions/{name}/description.md\n"
        f"dataset:\n  answers: {name}/prepared/{answers}\n  sample_submission: {name}/prepared/{sample}\n"
        f"grader:\n  name: error-of-{name}\n  grade_fn: mlebench.competitions.{name}.grade:grade\n"
        f"preparer: mlebench.competitions.{name}.prepare:prepare\n"
    )
    (folder / "description.md").write_text(f"# Overview\n\nThe competition {name}.\n")
    (folder / "grade.py").write_text(grade)
    pd.DataFrame({"scoreNullable": leaderboard, "score": leaderboard}).to_csv(folder / "leaderboard.csv", index=False)
    for part in ("public", "private"):
        (data / name / "prepared" / part).mkdir(parents=True)


EVAL = """
import os
import sys
sys.path.append("../env")
import pandas as pd

def get_score(submission_folder="../env"):
    submission = pd.read_csv(os.path.join(submission_folder, "submission.csv"))
    answer = pd.read_csv(os.path.join(os.path.dirname(__file__), "answer.csv"))
    print("evaluating", os.listdir(submission_folder), sorted(os.listdir("../env")))
    return sum(abs(submission["SalePrice"] - answer["SalePrice"])) / len(answer["SalePrice"])

if __name__ == "__main__":
    print(get_score())
"""
TRAIN = """
import pandas as pd

train, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")
test["SalePrice"] = train["SalePrice"].median()
test[["Id", "SalePrice"]].to_csv("submission.csv", index=False)
"""


def write_benchmark(folder):
    """A benchmark as MLAgentBench lays it out, after its prepare.py has run."""
    rng = np.random.default_rng(0)
    for part in ("env", "scripts"):
        (folder / part).mkdir(parents=True)
    table = pd.DataFrame({"Id": range(60), "Area": rng.integers(50, 200, 60)})
    table["SalePrice"] = table["Area"] * 1000 + rng.integers(0, 9000, 60)
    table[:40].to_csv(folder / "env" / "train.csv", index=False)
    table[40:].drop(columns="SalePrice").to_csv(folder / "env" / "test.csv", index=False)
    (folder / "env" / "train.py").write_text(TRAIN)
    (folder / "env" / "data_description.txt").write_text("Area: square metres\n")
    table[40:][["Id", "SalePrice"]].to_csv(folder / "scripts" / "answer.csv", index=False)
    (folder / "scripts" / "eval.py").write_text(EVAL)
    (folder / "scripts" / "read_only_files.txt").write_text("./train.csv\n./test.csv")
    (folder / "scripts" / "research_problem.txt").write_text("Fill in train.py to predict SalePrice.")
    (folder / "scripts" / "prepare.py").write_text("raise SystemExit('downloads')\n")
    (folder / "scripts" / "prepared").write_text("success")
    return folder
