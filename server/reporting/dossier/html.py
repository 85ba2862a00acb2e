"""The whole dossier as one HTML page with the look of the report; it embeds its styles and has no scripts."""

from __future__ import annotations

from collections import Counter

from server.reporting.dossier.contents import Dossier
from server.reporting.dossier.document import COLUMNS, MEANINGS
from server.reporting.report import page_template


def dossier_as_html(dossier: Dossier) -> str:
    """Render the page."""
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
