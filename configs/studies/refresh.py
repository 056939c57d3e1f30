"""States that the policy itself reached in the pool (the default), and the expert's alone.

python -m mlagent_jax.study configs/studies/refresh.py --workdir=runs/studies --seeds=0,1,2
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    return Study(
        name="refresh",
        question="Is it worth drawing half of the states from those that the policy itself reached?",
        arms=(Arm("no-refresh", {"pool.refresh_fraction": 0.0}),),
        diversity=True,
    )
