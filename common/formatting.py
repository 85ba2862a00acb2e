"""Number formatting for the command-line programs."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Format a count with its noun: ``1 site``, ``3 sites``, ``0 rounds``; ``plural`` is for irregular nouns."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """Format a number with ``digits`` decimal places and a typographic minus; zero after rounding has no sign."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
