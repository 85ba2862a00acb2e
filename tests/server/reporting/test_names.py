"""Whatever a run's sites, cases and labels are called, status and report show it, and nothing obeys it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.cli.entry import main
from server.run_store.folder import RunFolder, RunState
from tests import hostile
from tests.server.reporting.test_report import Page
from tests.server.run_folder import round_line, write_example, write_json_lines, write_run_folder

ROUNDS = 3


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_run_folder(tmp_path / "run", ROUNDS, hostile.NAMES)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"name": hostile.NAMES[0], "engine": hostile.NAMES[2]}
    summary["labels"] = {"1": hostile.NAMES[0], "2": hostile.NAMES[4]}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [round_line(number, ROUNDS, hostile.NAMES) for number in range(1, ROUNDS + 2)]
    lines[-1]["sites"][hostile.NAMES[0]] |= {"status": "refused", "reason": hostile.NAMES[1]}
    write_json_lines(folder / "rounds.jsonl", lines)
    RunFolder(folder).commit(RunState(run="r", digest="d", started="now", round=ROUNDS, finished=True))
    alarm = {"time": hostile.NAMES[2], "event": "alarm", "about": "x", "text": hostile.NAMES[3], hostile.NAMES[4]: 1}
    write_json_lines(folder / "events.jsonl", [alarm])
    for index, (kind, name) in enumerate(zip(("best", "worst"), hostile.NAMES, strict=False)):
        write_example(folder, name, index, kind, 0.9)
    return folder


def test_the_report_shows_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    page = Page(run / "report.html")
    assert not hostile.obeyed(page.source)
    assert page.open == []
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    for name in (r"a\x1b[2Jb", r"d\r\x9b31me", r"f\u202eg", "<script>h&\"'", r"i\u2028j\tk\x7f"):
        assert page.row(name)[1].isdecimal(), name
    assert page.source.count(r"a\x1b[2Jb</text>") >= 1  # a panel of the curves


def test_status_shows_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run)]) == 0
    text = capsys.readouterr().out
    assert not hostile.obeyed(text)
    assert r"  a\x1b[2Jb: refused (c\nerror: forged.nii: all is lost)" in text.splitlines()
    assert main(["status", str(run), "--json"]) == 0
    text = capsys.readouterr().out
    assert not hostile.obeyed(text)
    assert set(json.loads(text)["sites"]) == set(hostile.NAMES)
