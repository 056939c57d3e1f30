"""Whole episodes of any agent on any task, over the queue: who acts is in `agents`, how it goes in `episodes`."""
