"""Search for a better script: strategies over a stored tree of executed steps; the command is `mlagent_jax.solve`."""
