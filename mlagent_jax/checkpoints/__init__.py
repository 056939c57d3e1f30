"""Checkpoints: a run's own (Orbax), Hugging Face folders, adapters, and the policies in them."""
