"""The algorithms of RL by name, each beside the quickstart's (GAE, max@3, PPO's clip).

python -m mlagent_jax.study configs/studies/algorithms.py --workdir=runs/studies --seeds=0,1,2

An arm changes one choice; where the quickstart's max@3 does not go with it (docs/algorithms.md), the arm maximises the
mean reward, and `mean-reward` is what it compares with.
"""

from mlagent_jax.studies.plan import Arm, Study

_MEAN = {"rl.best_of": 1}


def get_study() -> Study:
    estimators = (
        Arm("mean-reward", _MEAN),
        Arm("grpo", {**_MEAN, "rl.estimator": "grpo"}),
        Arm("dr-grpo", {**_MEAN, "rl.estimator": "grpo", "rl.normalisation": "none", "rl.aggregation": "constant"}),
        Arm("reinforce-baseline", {**_MEAN, "rl.estimator": "reinforce_plus_plus_baseline"}),
        Arm("rloo", {"rl.estimator": "rloo"}),
        Arm("opo", {"rl.estimator": "opo"}),
        # As many executions: one in each of four times as many states.
        Arm("single-stream", {**_MEAN, "rl.estimator": "single_stream", "rl.states": 64, "rl.samples": 1}),
        Arm("length-adaptive", {"rl.estimator": "gae:length_alpha=0.05"}),
    )
    losses = (
        Arm("clip-higher", {"rl.loss": "ppo_clip:low=0.2,high=0.28"}),
        Arm("gspo", {"rl.loss": "gspo", "rl.aggregation": "sequence"}),
        Arm("cispo", {"rl.loss": "cispo"}),
        Arm("dppo", {"rl.loss": "dppo"}),
        Arm("sapo", {"rl.loss": "sapo"}),
    )
    others = (
        Arm("kl-unbiased", {"rl.kl_estimator": "unbiased"}),
        Arm("moving-reference", {"rl.reference_every": 8}),
        Arm("critic-first", {"rl.critic_warmup": 2}),
        Arm("sampled-again", {"rl.silent_groups": "resample", "rl.resample_executions": 32, "rl.max_staleness": 0}),
    )
    return Study(
        name="algorithms",
        question="What do estimators, policy losses, KL and critic change at the quickstart's size, in step reward and "
        "gain, for as many iterations?",
        arms=(*estimators, *losses, *others),
    )
