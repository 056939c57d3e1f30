"""Step-wise against episode-wise RL: relative gain by machine time (the paper's Fig. 4).

python -m mlagent_jax.study configs/studies/episodes.py --workdir=runs/studies --seeds=0,1,2
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    # An iteration of whole episodes of 4 steps executes four times as many actions as one of single actions.
    whole = {"rl.rollout": "episode", "rl.episode_steps": 4, "rl.best_of": 1, "rl.max_staleness": 0}
    episodes = Arm("episode-wise", whole, points=(3, 6))
    return Study(
        name="episodes",
        question="How fast does relative gain rise with machine time when single actions are trained on, and how fast "
        "when whole episodes are?",
        arms=(episodes,),
    )
