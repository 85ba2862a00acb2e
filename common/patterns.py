"""Patterns for whole texts, as hospitals write them."""

from __future__ import annotations

from fnmatch import fnmatchcase


def matches(pattern: str, text: str) -> bool:
    """Return whether a text fits a pattern: ``*`` stands for anything, ``?`` for one character, all else for itself."""
    # Brackets, too, which descriptions of series have.
    return fnmatchcase(text, pattern.replace("[", "[[]"))
