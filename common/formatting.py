"""Formatting of numbers and texts for people."""

from __future__ import annotations

import re

# Advice how to write an address stays as it is.
_CREDENTIALS = re.compile(r"(?<=://)(?!USER:PASSWORD@)\S*@")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Format a count with its noun: ``1 site``, ``3 sites``, ``0 rounds``; ``plural`` is for irregular nouns."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def fixed(value: float, digits: int, signed: bool = False) -> str:
    """Format a number with ``digits`` decimal places and a typographic minus; zero after rounding has no sign."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def visible(text: str, keep: str = "") -> str:
    r"""Write every control character of a text as an escape such as ``\x1b``, and so everything else that is no sign.

    For whatever somebody else can name. A terminal would obey such characters, and a line break would forge a line.

    Parameters
    ----------
    text
        The text.
    keep
        Characters to leave as they are, such as the line breaks of a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def csv_text(text: str) -> str:
    """Return a text for a cell of a CSV file that no spreadsheet takes for a formula, with control characters visible.

    A cell that begins with one of ``= + - @`` gets an apostrophe in front.
    """
    return f"'{visible(text)}" if text.startswith(("=", "+", "-", "@")) else visible(text)


def without_passwords(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it: ``https://***@host``."""
    return _CREDENTIALS.sub("***@", text)
