"""SHA-256 in hexadecimal digits, which names models, updates and files of plans."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

SHA256 = re.compile(r"[0-9a-f]{64}")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def is_sha256(text: str) -> bool:
    """Whether a text can name a file of weights."""
    return SHA256.fullmatch(text) is not None
