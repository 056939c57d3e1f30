"""Whole episodes of any agent on any task, through the queue: `agents` makes the agents, `episodes` runs them."""
