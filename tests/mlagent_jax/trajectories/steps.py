"""Recorded steps, made up, with everything in them that a step may have."""

from environments.protocol import Outcome, OutcomeKind, Scale, State, Step
from mlagent_jax.trajectories.record import Record

SCALE = Scale(m_init=0.5, m_best=0.9, higher_is_better=True)


def make_record(trajectory=0, step=0, split="train", kind=OutcomeKind.SCORED, run="r", **fields):
    history = tuple(Step(f"action {i}", f"caf\u00e9 {i}\n\x1b[31m") for i in range(step))
    state = State("wine@1", history, f"{step:064x}", "script\n", 0.1 + 0.2, ("an idea", "another"))
    scored = kind is OutcomeKind.SCORED
    outcome = Outcome(
        kind=kind,
        observation="validation auc 0.895",
        snapshot=f"{step + 1:064x}",
        script="script\n",
        metric_before=0.1 + 0.2,
        metric_after=1 / 3 if scored else None,
        scale=SCALE,
        reward=None if kind is OutcomeKind.INFRASTRUCTURE_ERROR else 0.7,
        action_name="Edit Script (Cell)" if scored else None,
        action_input={"cell": "model", "lines": [1, 2]} if scored else None,
        progress=("parsed", "applied"),
        repairs=("thoughts",) if scored else (),
        submission="f" * 64 if scored else None,
    )
    values = {"stage": "collect", "task": "wine", "prompt": "p\u2028", "action": f"action {step}"} | fields
    return Record(split=split, trajectory=trajectory, step=step, state=state, outcome=outcome, run=run, **values)


def make_records(trajectories=3, steps=4):
    kinds = [kind for kind in OutcomeKind if kind is not OutcomeKind.INFRASTRUCTURE_ERROR]
    return [
        make_record(t, s, "held_out" if t == trajectories - 1 else "train", kinds[(t + s) % len(kinds)])
        for t in range(trajectories)
        for s in range(steps)
    ]
