"""Synchronous against asynchronous RL where executions take time and nothing else: seconds per update.

    python -m mlagent_jax.study configs/studies/asynchronous.py --workdir=runs/studies --seeds=0

A study of time alone: executions sleep, as those that run on other hosts do for this one; a small policy has random
weights, and what it is rewarded for is made up.
"""

from mlagent_jax.studies.plan import Arm, Sleep, Study

_SLEEP = Sleep(seconds=5.0, workers=4)
_POINTS = (12,)
_COMMON = {
    "policy.hidden_size": 96,
    "policy.num_layers": 2,
    "policy.num_heads": 2,
    "policy.num_kv_heads": 1,
    "policy.intermediate_size": 256,
    "tokenizer.vocab_size": 320,
    "prompt.max_action_tokens": 32,
    "rl.states": 2,
    "pool.refresh_fraction": 0.0,  # all prompts of one length
}


def _arm(name: str, staleness: int, ahead: bool) -> Arm:
    return Arm(
        name,
        {**_COMMON, "rl.max_staleness": staleness, "rl.sample_ahead": ahead},
        points=_POINTS,
        sleep=_SLEEP,
    )


def get_study() -> Study:
    return Study(
        name="asynchronous",
        question="What does an update take, and how long does the device wait in it, where sampling, execution and "
        "update overlap (one policy version behind), and where they take turns?",
        default=_arm("asynchronous", 1, True),
        # Batches a version behind as well, sampled between updates instead of beside them.
        arms=(_arm("in-turns", 1, False), _arm("synchronous", 0, False)),
    )
