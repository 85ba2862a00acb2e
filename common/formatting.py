"""Numbers as people read them, for both command lines."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count and its noun: ``1 site``, ``3 sites``, ``0 rounds``; ``plural`` if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """A number with so many digits after its point and a typographic minus; what rounds to zero has no sign."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
