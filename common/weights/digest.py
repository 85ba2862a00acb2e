"""SHA-256 digests in hexadecimal digits, which identify weights, updates and configurations."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Return whether a text is a SHA-256 in lower-case hexadecimal digits."""
    return SHA256.fullmatch(text) is not None


def _check(text: str) -> str:
    if not is_sha256(text):
        raise ValueError("must be a SHA-256: 64 digits from 0 to f")
    return text


Digest = Annotated[str, AfterValidator(_check)]
