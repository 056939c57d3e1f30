"""Optimizers and exact accumulation of gradients."""
