"""SHA-256 digests in hexadecimal digits, which identify weights, updates and configurations."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

SHA256 = re.compile(r"[0-9a-f]{64}")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hexadecimal digits."""
    return SHA256.fullmatch(text) is not None
