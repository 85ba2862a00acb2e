"""Names that a terminal, a spreadsheet or a browser would obey, and the search for them in what is shown."""

from __future__ import annotations

NAMES = (
    "a\x1b[2Jb",
    "c\nerror: forged.nii: all is lost",
    "d\r\x9b31me",
    "f\N{RIGHT-TO-LEFT OVERRIDE}g",
    "<script>h&\"'",
    "=1+1",
    "i\u2028j\tk\x7f",
)
"""Each may be part of a file's name."""


def obeyed(text: str) -> set[str]:
    """Return the characters of a text that are no signs, but line breaks."""
    return {character for character in text if not character.isprintable() and character != "\n"}
