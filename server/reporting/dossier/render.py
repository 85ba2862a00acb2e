"""The dossier as Markdown files and as one HTML page; whatever somebody else named is escaped in both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from common.formatting import counted
from server.formatting import escaped
from server.reporting.dossier.contents import Dossier
from server.reporting.dossier.document import COLUMNS, MEANINGS, Page, Row, Section, Statement
from server.reporting.report import page_template


def dossier_as_html(dossier: Dossier) -> str:
    """Render the whole dossier as a page with the look of the report; it embeds its styles and has no scripts."""
    counts = Counter(statement.basis for page in dossier.pages for statement in page.statements)
    return page_template("dossier.html.jinja").render(
        title=dossier.facts.title,
        status=dossier.facts.status,
        notices=dossier.notices,
        about=dossier.about,
        counts={basis: counts[basis] for basis in MEANINGS},
        meanings=MEANINGS,
        pages=dossier.pages,
        files=dossier.files,
        columns=COLUMNS,
    )


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


def cover_as_markdown(dossier: Dossier) -> str:
    """Render ``README.md``: what the dossier is, its documents, and what the words mean."""
    rows = [
        f"| [{escaped(page.title)}]({page.name}.md) | {counted(page.open_count, 'open point')} |"
        for page in dossier.pages
    ]
    rows += [f"| [{name}]({name}) | {escaped(contents)} |" for name, contents in dossier.files]
    parts = [
        f"# Dossier: {escaped(dossier.facts.title)}",
        *(f"> {escaped(notice)}" for notice in dossier.notices),
        f"For review boards, data-protection officers and notified bodies. {escaped(dossier.about)}",
        "\n".join(["| document | contents |", "| --- | --- |", *rows]),
        "## What the words in bold mean",
        "\n".join(f"- **{basis.label}.** {escaped(meaning)}" for basis, meaning in MEANINGS.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _list(row: Row) -> str:
    return "\n".join([f"### {escaped(row.topic)}", "", *(f"- {_line(statement)}" for statement in row.statements)])


def _line(statement: Statement) -> str:
    return f"**{statement.basis.label}.** {escaped(statement.text)} *({escaped(statement.source)})*"


def _table(section: Section) -> str:
    lines = [f"| Topic | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for row in section.rows:
        cells = ["<br>".join(map(_line, row.of(bases))) or "–" for bases in COLUMNS.values()]
        lines.append(f"| {escaped(row.topic)} | {' | '.join(cells)} |")
    return "\n".join(lines)
