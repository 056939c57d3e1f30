"""Exploration-enriched fine-tuning, with and without its enrichment.

    python -m mlagent_jax.study configs/studies/exploration.py --workdir=runs/studies --seeds=0,1,2

Without it the expert's prompts carry no ideas, and the scripted expert reaches for a few favourites of its own.
"""

from mlagent_jax.studies.plan import Arm, Study


def get_study() -> Study:
    return Study(
        name="exploration",
        question="Does enriching the expert's prompts with diverse ideas make the policy try more different edits, and "
        "what is that worth after the same RL?",
        arms=(Arm("plain", start={"collect.enriched": False}),),
        diversity=True,
    )
