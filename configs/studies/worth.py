"""What a step that changes nothing is worth.

python -m mlagent_jax.study configs/studies/worth.py --workdir=runs/studies --seeds=0,1,2
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    text_counts = {"plugins": ("configs/rewards/text_counts.py",), "rl.reward": "text_counts"}
    return Study(
        name="worth",
        question=(
            "Does a policy learn to comment where an edit that changes nothing pays 0.5 (`text-counts`), and does it "
            "gain more where losses pay little more than such a step (`cheap-losses`), or no more (`gains-alone`)?"
        ),
        arms=(
            Arm("text-counts", text_counts),
            Arm("cheap-losses", {"rl.reward": "improvement:neutral=0.3"}),
            Arm("gains-alone", {"rl.reward": "improvement:neutral=0.1"}),
        ),
    )
