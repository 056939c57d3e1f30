"""The mathematics of RL: pure functions over arrays [rows, tokens] and masks, chosen by name in the config.

No module here depends on a model or a config. The registries hold the choices, to which users may add:
`estimators.ESTIMATORS`, `policy_losses.POLICY_LOSSES`, `corrections.CORRECTIONS`, `kl.KL_CONTROLLERS`. `combinations`
defines which choices work together. All arithmetic is float32. Entries outside a mask may have any value, NaN included:
they are replaced before use, so that they reach neither a value nor a gradient.
"""
