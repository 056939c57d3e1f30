"""Agents and their prompts: the scripted expert, a policy, an endpoint; and the episodes that they play."""
