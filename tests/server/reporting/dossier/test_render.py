"""The page holds every statement of the Markdown files, needs nothing else, and obeys no name."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.reporting.dossier.contents import Dossier, compose
from server.reporting.dossier.facts import gather
from server.reporting.dossier.render import dossier_as_html
from tests import hostile
from tests.server.reporting.dossier.runs import write_network_run
from tests.server.reporting.test_report import Page
from tests.server.run_folder import write_json_lines, write_run_folder


def read(dossier: Dossier, folder: Path) -> Page:
    file = folder / "dossier.html"
    file.write_text(dossier_as_html(dossier), encoding="utf-8")
    return Page(file)


@pytest.mark.parametrize("write", [write_run_folder, write_network_run])
def test_the_page_has_every_statement_with_its_source(write: object, tmp_path: Path) -> None:
    assert callable(write)
    dossier = compose(gather(write(tmp_path / "run")))
    page = read(dossier, tmp_path)
    assert page.open == []
    items = [attributes["class"] for tag, attributes in page.elements if tag == "li"]
    statements = [one for part in dossier.pages for one in part.statements]
    assert sorted(map(str, items)) == sorted(one.basis.value for one in statements)
    for one in statements:
        assert one.text in page.text and one.source in page.text, one
    for notice in dossier.notices:
        assert notice in page.text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = read(compose(gather(write_network_run(tmp_path / "run"))), tmp_path)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "img"})
    addresses = [str(attributes["href"]) for _, attributes in page.elements if "href" in attributes]
    named = {str(attributes["id"]) for _, attributes in page.elements if "id" in attributes}
    assert {address for address in addresses if address.startswith("#")} == {f"#{name}" for name in named}
    assert {address for address in addresses if address[0] != "#"} == {"data:,", "sbom.cdx.json"}


def test_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "run", hostile.NAMES)
    alarms = [{"event": "alarm", "about": name, "text": name} for name in hostile.NAMES]
    write_json_lines(run / "events.jsonl", [{"event": "started", "engine": "network"}, *alarms])
    page = read(compose(gather(run)), tmp_path)
    assert page.open == []
    assert not hostile.obeyed(page.source)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<script>h&\"'" in page.text
    assert r"a\x1b[2Jb" in page.text
