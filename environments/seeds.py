"""The two seeds of a run: one generates the data and their hidden labels, scripts see the other.

    seed -> the task's data, on the host alone
         -> execution_seed(seed) -> MLAGENT_SEED, in the sandbox

Users give both the same number, since both default to 0. A script that knew the data's seed could regenerate the
labels with our source. So a job holds `execution_seed` of it instead.
"""

from __future__ import annotations

import hashlib

_BYTES = 4
"""Number of bytes: NumPy's global generator and PYTHONHASHSEED take 32 bits. They also leave a large seed undetermined.
"""


def execution_seed(seed: int) -> int:
    """Derive the seed that scripts see, one way: a keyed hash of 32 bits."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=_BYTES, key=b"mlagent execution").digest()
    return int.from_bytes(digest, "big")
