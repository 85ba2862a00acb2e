"""Pages of the dossier as plain values: statements, each with its basis and where it comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

MOST_CHARACTERS = 300


class Basis(StrEnum):
    """What a statement rests on, from the strongest to none."""

    SHOWN = "shown"
    DECLARED = "declared"
    DESIGN = "design"
    OPEN = "open"

    @property
    def label(self) -> str:
        """The word that stands before a statement."""
        return "OPEN" if self is Basis.OPEN else self.capitalize()


MEANINGS = {
    Basis.SHOWN: "The coordinator's program observed and recorded it in the run folder.",
    Basis.DECLARED: "Somebody said so, in the federation file, in a message of a site or in a document; the program "
    "cannot check it.",
    Basis.DESIGN: "The program is built so, and its tests try it. This run does not prove that everybody used "
    "the unchanged program.",
    Basis.OPEN: "The run cannot answer it. A person must, and the line says who usually knows.",
}

COLUMNS = {
    "By design": (Basis.DESIGN,),
    "What this run shows": (Basis.SHOWN, Basis.DECLARED),
    "Open": (Basis.OPEN,),
}
"""Columns of tabular sections, after the topic."""


@dataclass(frozen=True)
class Statement:
    """One sentence or more.

    Attributes
    ----------
    origin
        Files of the run folder (shown, declared), a page of the documentation (design), or who usually knows (open).
    """

    basis: Basis
    text: str
    origin: str

    @property
    def source(self) -> str:
        """The origin, with a word that says what it is."""
        return f"{'Usually known by' if self.basis is Basis.OPEN else 'Source'}: {self.origin}"


@dataclass(frozen=True)
class Row:
    """What is known, and what is open, on one topic."""

    topic: str
    statements: tuple[Statement, ...]

    def of(self, bases: Collection[Basis]) -> list[Statement]:
        """Return the statements that rest on one of ``bases``."""
        return [statement for statement in self.statements if statement.basis in bases]


@dataclass(frozen=True)
class Section:
    """Rows under a heading; ``tabular`` ones are compared with each other, column by column."""

    title: str
    rows: tuple[Row, ...]
    introduction: str = ""
    tabular: bool = False


@dataclass(frozen=True)
class Page:
    """One document of the dossier; ``name`` is that of its file, without ending."""

    name: str
    title: str
    introduction: str
    sections: tuple[Section, ...]

    @property
    def statements(self) -> Iterator[Statement]:
        """All statements of the page."""
        return (statement for section in self.sections for row in section.rows for statement in row.statements)

    @property
    def open_count(self) -> int:
        """How many statements people must fill in."""
        return sum(statement.basis is Basis.OPEN for statement in self.statements)


def shown(text: str, *files: str) -> Statement:
    """State what the coordinator's program recorded in ``files`` of the run folder."""
    return Statement(Basis.SHOWN, text, ", ".join(files))


def declared(text: str, *files: str) -> Statement:
    """State what somebody declared, as ``files`` of the run folder have it."""
    return Statement(Basis.DECLARED, text, ", ".join(files))


def by_design(text: str, page: str = "threat-model.md") -> Statement:
    """State how the program is built, as a page of its documentation says."""
    return Statement(Basis.DESIGN, text, f"deploy/docs/{page}")


def left_open(text: str, who: str) -> Statement:
    """State what a person must fill in, and who usually knows it."""
    return Statement(Basis.OPEN, text, who)


def row(topic: str, *statements: Statement | None) -> Row:
    """Make a row of those statements that there are."""
    return Row(topic, tuple(statement for statement in statements if statement is not None))


def brief(value: object) -> str:
    """Return a value that somebody else chose as text of bounded length."""
    text = str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def listed(values: Iterable[object], most: int = 40) -> str:
    """List values that somebody else chose; of very many only the first."""
    texts = [brief(value) for value in values]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")
