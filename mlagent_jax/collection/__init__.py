"""The collect stage: expert trajectories from prompts enriched with ideas."""
