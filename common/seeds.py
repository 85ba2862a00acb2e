"""Independent seeds for the parts of a federation."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, name: str) -> int:
    """Derive a 32-bit seed for a named part of a federation, independent of the seeds of other names."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
