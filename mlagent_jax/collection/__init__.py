"""Collect stage: expert trajectories from prompts enriched with ideas."""
