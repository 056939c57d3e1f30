"""The two seeds of a run: one draws the data with their hidden labels, the other is what scripts see.

    seed -> the task's data, on the host alone
         -> execution_seed(seed) -> MLAGENT_SEED, in the sandbox

People give both the same number, since 0 is the default of either. A script that knew the seed of the data could draw
the labels again from our source. So a job's seed has passed through `execution_seed`.
"""

from __future__ import annotations

import hashlib

_BYTES = 4
"""NumPy's global generator and PYTHONHASHSEED take 32 bits. So few also leave a large seed undetermined."""


def execution_seed(seed: int) -> int:
    """Derive the seed that scripts see. It cannot be turned back: a keyed hash, of 32 bits."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=_BYTES, key=b"mlagent execution").digest()
    return int.from_bytes(digest, "big")
