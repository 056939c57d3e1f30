"""The half of the sandboxes that runs inside them: standard library only, copied in, trusted.

`environments.sandbox.bubblewrap` mounts this package into its warm sandbox and starts `zygote`; every execution is
then a `supervisor` (trusted, outside the wall), an init process and the script (inside it). The Docker provider
feeds `capsule` to the container's interpreter. `transfer` is spoken on both sides.
"""
