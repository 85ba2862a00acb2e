"""Seeds for the named parts of a federation."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, name: str) -> int:
    """A seed of 32 bits for a named part of a federation, unrelated to those of all other names."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")
