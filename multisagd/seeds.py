"""Seeds without state: every random number is a function of what it is for.

A seed is a stable hash of (run seed, stream, step, sample slot). It never depends on a rank, a batch or a process, so
a resumed run continues its noise with nothing saved, and a sample does not depend on the batch it was drawn in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def derive(seed: int, stream: str, *indices: int) -> int:
    """Hash a seed, the name of a stream and any indices to 32 bits (all that torch's CPU generator keeps)."""
    text = ":".join([str(int(seed)), stream, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def derive_many(seed: int, stream: str, step: int, slots: Iterable[int]) -> list[int]:
    """Return one derived seed for each sample slot of a step."""
    return [derive(seed, stream, step, slot) for slot in slots]
