"""The checklist has the guideline's 30 recommendations, and closes none of them by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.reporting.dossier.document import Basis
from server.reporting.dossier.facts import gather
from server.reporting.dossier.future_ai import RECOMMENDATIONS, checklist
from tests.server.reporting.dossier.runs import write_network_run
from tests.server.run_folder import write_run_folder


@pytest.mark.parametrize("write", [write_run_folder, write_network_run])
def test_thirty_recommendations_are_all_left_open(write: object, tmp_path: Path) -> None:
    assert callable(write)
    page = checklist(gather(write(tmp_path / "run")))
    counts = {name: len(items) for name, items in RECOMMENDATIONS.items()}
    assert list(counts.values()) == [3, 4, 6, 5, 3, 2, 7]
    rows = [row for section in page.sections for row in section.rows]
    assert len(rows) == 30
    assert len({row.topic for row in rows}) == 30
    for row in rows:
        assert [one.basis for one in row.statements].count(Basis.OPEN) == 1


def test_scores_by_site_are_the_sites_word(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "run")
    texts = [one.text for one in checklist(gather(run)).statements if one.basis is Basis.DECLARED]
    (text,) = {text for text in texts if "by site" in text}
    low, high = map(float, re.findall(r"(?:lowest|highest) ([\d.]+)", text))
    line = gather(run).run.rounds[-1]
    scores = [part.mean_dice for part in line.sites.values() if part.mean_dice is not None]
    assert (low, high) == (pytest.approx(min(scores), abs=5e-4), pytest.approx(max(scores), abs=5e-4))
    assert "with noise" in text
    (run / "summary.json").unlink()
    assert "No scores of a released model" in str(list(checklist(gather(run)).statements))
