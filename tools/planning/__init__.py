"""What a config takes of accelerators that are not there: bytes a device, and its programs compiled ahead of time.

`slices` has the accelerators, `blueprint` everything of a run as shapes with shardings, `memory` the bytes by phase and
what would make them fit, `programs` the steps compiled from the blueprint, `hlo` and `flops` what they consist of.
`tools/plan.py` prints it.
"""
