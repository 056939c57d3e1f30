"""Actions weighted by their execution seconds (arXiv 2509.01684), and not (the default).

python -m mlagent_jax.study configs/studies/duration.py --workdir=runs/studies --seeds=0,1,2
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    return Study(
        name="duration",
        question="What does weighting each action's gradient by its execution time change, where all executions count?",
        arms=(Arm("duration-weighted", {"rl.duration_weighting": True}),),
    )
