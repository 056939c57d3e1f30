"""The part of the sandboxes that runs inside them: standard library only, copied in, trusted.

`environments.sandbox.bubblewrap` mounts this package into its warm sandbox and starts `keeper`. Each execution then has
a `supervisor` (trusted, outside the isolation), an init process and the script (both inside it). The Docker provider
passes `capsule` to the container's interpreter. Both sides use `transfer`.
"""
