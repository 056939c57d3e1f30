"""The paper's two rewards beside ours.

python -m mlagent_jax.study configs/studies/rewards.py --workdir=runs/studies --seeds=0,1,2
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    return Study(
        name="rewards",
        question="What do the rewards of the paper's versions 1 and 2 reach, beside `improvement` (the default)?",
        arms=(Arm("paper-v1", {"rl.reward": "paper_v1"}), Arm("paper-v2", {"rl.reward": "paper_v2"})),
    )
