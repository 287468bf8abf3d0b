"""Random bits that depend on a seed and a name only: no state, no order, no platform.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11) is a counter-based generator:
the key picks a stream, the counter a place in it. The key is a hash of the seed and of what the bits are for, so
a parameter gets the same bits whichever other parameters exist, and a resumed run has no generator state to restore.
Used by `initializers` (weights) and `data` (order of the windows).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from ggmlgraph.errors import UsageError


def philox(seed: int, name: str) -> np.random.Philox:
    """The generator of the stream (seed, name); take bits with `random_raw`, whose output numpy never changes.

    Raises UsageError unless 0 <= seed < 2**64.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed {seed} is not in 0 .. 2**64 - 1")
    digest = blake2b(seed.to_bytes(8, "little") + name.encode(), digest_size=16, person=b"ggmlgraph").digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))
