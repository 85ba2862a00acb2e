"""Pages of the dossier as Markdown; whatever somebody else named is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from common.formatting import counted
from server.formatting import escaped
from server.reporting.dossier.document import MEANINGS, Basis, Page, Row, Section, Statement
from server.reporting.dossier.facts import RunFacts

_COLUMNS = {
    "By design": (Basis.DESIGN,),
    "What this run shows": (Basis.SHOWN, Basis.DECLARED),
    "Open": (Basis.OPEN,),
}


def page_as_markdown(page: Page, notices: Sequence[str]) -> str:
    """Render a page; ``notices`` stand below its title."""
    parts = [f"# {escaped(page.title)}", *(f"> {escaped(notice)}" for notice in notices), escaped(page.introduction)]
    parts.append(f"{counted(page.open_count, 'open point')}. [What the words in bold mean](README.md)")
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        if section.introduction:
            parts.append(escaped(section.introduction))
        parts += [_table(section)] if section.tabular else [_list(row) for row in section.rows]
    return "\n\n".join(parts) + "\n"


def cover_as_markdown(
    facts: RunFacts, pages: Sequence[Page], files: Sequence[tuple[str, str]], notices: Sequence[str]
) -> str:
    """Render ``README.md``: what the dossier is, its documents, and what the words mean.

    Parameters
    ----------
    facts
        The run.
    pages
        All pages.
    files
        Name and contents of the files that are no pages.
    notices
        What a reader must know first.
    """
    rows = [f"| [{escaped(page.title)}]({page.name}.md) | {counted(page.open_count, 'open point')} |" for page in pages]
    rows += [f"| [{name}]({name}) | {escaped(contents)} |" for name, contents in files]
    meanings = [f"- **{basis.label}.** {escaped(meaning)}" for basis, meaning in MEANINGS.items()]
    return (
        "\n\n".join(
            [
                f"# Dossier: {escaped(facts.title)}",
                *(f"> {escaped(notice)}" for notice in notices),
                "For review boards, data-protection officers and notified bodies. It holds what the run folder shows "
                "and names what people must add. It is no approval, no legal advice and no statement of conformity.",
                "| document | contents |\n| --- | --- |\n" + "\n".join(rows),
                "## What the words in bold mean",
                "\n".join(meanings),
            ]
        )
        + "\n"
    )


def _list(row: Row) -> str:
    return "\n".join([f"### {escaped(row.topic)}", "", *(f"- {_line(statement)}" for statement in row.statements)])


def _line(statement: Statement) -> str:
    return f"**{statement.basis.label}.** {escaped(statement.text)} *({escaped(statement.source)})*"


def _table(section: Section) -> str:
    lines = [f"| Topic | {' | '.join(_COLUMNS)} |", "| --- " * (len(_COLUMNS) + 1) + "|"]
    for row in section.rows:
        cells = [
            "<br>".join(_line(statement) for statement in row.statements if statement.basis in bases) or "–"
            for bases in _COLUMNS.values()
        ]
        lines.append(f"| {escaped(row.topic)} | {' | '.join(cells)} |")
    return "\n".join(lines)
