"""Table 1 of ML-Agent (arXiv 2505.23723v1), as published: average and best of 8 trajectories per task.

Its hidden labels, hardware and starting scripts differ from ours, so the figures are for orientation only. Every output
that shows them marks them as published.
"""

from __future__ import annotations

COLUMNS = ("Qwen-7B-Inst", "Qwen-32B-Inst", "GPT-4o-mini", "GPT-4o", "DeepSeek-R1", "ML-Agent")
SOURCE = "arXiv 2505.23723v1, Table 1"

_ROWS = """
cifar-10 52.19/61.55 59.12/76.05 53.96/63.82 61.70/80.83 66.39/80.34 68.88/81.45
home-data-for-ml-course 21626/21412 21134/20440 20671/19905 20850/20441 20929/20234 20209/18440
feedback-prize-english-language-learning .6735/.6116 .6273/.5783 .6211/.5940 .6435/.6098 .6452/.5973 .5910/.5777
denoising-dirty-documents .1523/.0926 .1344/.0829 .1459/.0662 .1471/.0661 .1419/.1326 .0741/.0556
leaf-classification .0780/.0653 .0786/.0473 .0747/.0601 .0785/.0499 .0761/.0540 .0689/.0373
statoil-iceberg-classifier-challenge .3093/.2683 .3052/.2664 .2908/.2719 .3209/.2914 .2908/.2701 .2868/.2617
whale-categorization-playground .1304/.2276 .1268/.2019 .1198/.1421 .1417/.2185 .1551/.2456 .2009/.2524
learning-agency-lab-automated-essay-scoring-2 .7422/.7545 .7464/.7615 .7386/.7441 .7437/.7484 .7336/.7488 .7472/.7693
detecting-insults-in-social-commentary 80.13/80.75 80.89/82.01 80.06/80.44 80.33/81.70 79.92/80.41 81.11/82.73
spooky-author-identification .4515/.4285 .4660/.4285 .4443/.4285 .4474/.4422 .4454/.4248 .4415/.4078
jigsaw-toxic-comment-classification-challenge .9746/.9752 .9751/.9753 .9744/.9752 .9751/.9752 .9752/.9752 .9753/.9763
us-patent-phrase-to-phrase-matching .4700/.4859 .4725/.4908 .4695/.4905 .4882/.5599 .4651/.4813 .5117/.5791
tabular-playground-series-dec-2021 95.94/96.06 95.97/96.12 95.90/96.07 95.91/96.10 95.78/96.12 96.09/96.13
"""
PERCENT = ("cifar-10", "detecting-insults-in-social-commentary", "tabular-playground-series-dec-2021")
"""Tasks whose accuracy the paper's table gives in percent; here it is a fraction, as in our own figures."""


def _rows() -> dict[str, dict[str, tuple[float, float]]]:
    rows = {}
    for line in _ROWS.split("\n"):
        if line:
            task, *cells = line.split(" ")
            unit = 100.0 if task in PERCENT else 1.0
            pairs = [tuple(round(float(value) / unit, 6) for value in cell.split("/")) for cell in cells]
            rows[task] = dict(zip(COLUMNS, pairs, strict=True))
    return rows


TABLE: dict[str, dict[str, tuple[float, float]]] = _rows()
"""(average, best) by task and agent."""
