"""Studies: what a change of the method is worth, measured against one default arm that all studies share.

configs/studies/NAME.py -> plan (runs of `mlagent_jax.train`) -> results (pooled over seeds) -> table, figure, page
"""
