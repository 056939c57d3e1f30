"""Studies: the effect of a change of the method, measured against one default arm that all studies share.

configs/studies/NAME.py -> plan (runs of `mlagent_jax.train`) -> results (pooled over seeds) -> table, figure, page
"""
