"""The mathematics of RL: pure functions over arrays [rows, tokens] and masks, chosen by name in the config.

Nothing here knows a model or a config. What users choose, and may add to, stands in registries:
`estimators.ESTIMATORS`, `policy_losses.POLICY_LOSSES`, `corrections.CORRECTIONS`, `kl.KL_CONTROLLERS`. `combinations`
says which choices go together. Everything is float32. What lies outside a mask may hold anything, NaN included: it is
replaced before it is used, so that it reaches neither a value nor a gradient.
"""
