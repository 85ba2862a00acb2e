"""A new run knows of a site's ledger what the site told an earlier run, and of its audit log nothing."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DamagedFileError
from common.system.state_file import write_sealed
from server.run_store.ledgers_seen import FILE, ledgers_carried_over
from server.run_store.site_reports import FILE as REPORTS
from server.run_store.site_reports import SiteReport, SiteReports
from tests.server.run_store.test_site_reports import INFO, RESULT

AUTHORITY = "9" * 64


class Run:
    """A run folder beside others, and what was said when it was started."""

    def __init__(self, folder: Path, authority: str = AUTHORITY) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._authority = authority
        folder.mkdir(exist_ok=True)

    def start(self, *answers: object) -> SiteReport:
        """Starts and ends the server; what it knew of north before the answers."""
        with ledgers_carried_over(self.folder, self._authority, self.said.append):
            reports = SiteReports(self.folder)
            known = reports.last("north")
            for answer in answers:
                reports.note(answer)  # type: ignore[arg-type]
        return known


def test_a_new_run_hands_back_the_last_ledger_entry_alone(tmp_path: Path) -> None:
    assert Run(tmp_path / "first").start(INFO, RESULT) == SiteReport()
    shutil.rmtree(tmp_path / "first")
    second = Run(tmp_path / "second")
    for answers in ([], [replace(INFO, ledger_head=None)]):
        known = second.start(*answers)
        assert (known.ledger, known.audit, known.epsilon) == ("c" * 64, None, None), "an audit log may begin anew"
    known = second.start()
    assert (known.ledger, known.audit) == ("c" * 64, "b" * 64), "an answer without an entry forgets none"
    assert second.start(replace(RESULT, ledger_head="e" * 64)).audit == "b" * 64
    assert Run(tmp_path / "third").start().ledger == "e" * 64
    assert second.said == []


def test_another_authoritys_site_of_that_name_is_another_site(tmp_path: Path) -> None:
    Run(tmp_path / "first").start(RESULT)
    other = Run(tmp_path / "second", "8" * 64)
    assert other.start(replace(RESULT, ledger_head="e" * 64)) == SiteReport()
    assert Run(tmp_path / "third").start().ledger == "c" * 64


def test_an_earlier_run_keeps_its_own_reports(tmp_path: Path) -> None:
    first = Run(tmp_path / "first")
    first.start(RESULT)
    Run(tmp_path / "second").start(replace(RESULT, ledger_head="e" * 64))
    assert first.start().ledger == "c" * 64


def test_an_earlier_run_that_goes_on_does_not_bring_back_its_older_entry(tmp_path: Path) -> None:
    first, later = Run(tmp_path / "first"), replace(RESULT, ledger_head="e" * 64)
    first.start(RESULT)
    Run(tmp_path / "second").start(later)
    first.start()
    first.start(RESULT)
    assert Run(tmp_path / "third").start().ledger == "e" * 64
    first.start(replace(RESULT, ledger_head="f" * 64))
    assert Run(tmp_path / "fourth").start().ledger == "f" * 64


def test_a_killed_run_that_goes_on_brings_its_newer_entry(tmp_path: Path) -> None:
    first = Run(tmp_path / "first")
    first.start(RESULT)
    SiteReports(first.folder).note(replace(RESULT, ledger_head="e" * 64))
    first.start()
    assert Run(tmp_path / "second").start().ledger == "e" * 64


def test_what_a_killed_server_knew_is_kept_at_its_next_start(tmp_path: Path) -> None:
    first = Run(tmp_path / "first")
    SiteReports(first.folder).note(RESULT)
    first.start()
    assert Run(tmp_path / "second").start().ledger == "c" * 64


@pytest.mark.parametrize(
    "content", [b"", b"{}", {"north": {"north": "c" * 64}}, {AUTHORITY: {"north": {"entry": "c", "time": 1.0}}}]
)
def test_a_damaged_file_is_named_and_stays(tmp_path: Path, content: bytes | dict[str, object]) -> None:
    file = tmp_path / FILE
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write_sealed(file, content)
    before = file.read_bytes()
    with pytest.raises(DamagedFileError, match=f"{FILE}.*remove it"):
        Run(tmp_path / "run").start()
    assert file.read_bytes() == before


class RunFailedError(Exception):
    """The real cause of a run's end."""


@pytest.mark.parametrize("name", [FILE, f"run/{REPORTS}"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_file_damaged_meanwhile_neither_fails_the_run_nor_hides_its_error(
    tmp_path: Path, name: str, fails: bool
) -> None:
    run = Run(tmp_path / "run")
    run.start(RESULT)
    with contextlib.ExitStack() as stack:
        if fails:
            stack.enter_context(pytest.raises(RunFailedError))
        with ledgers_carried_over(run.folder, AUTHORITY, run.said.append):
            (tmp_path / name).write_bytes(b"{}")
            if fails:
                raise RunFailedError
    [said] = run.said
    assert name in said and "remove it" in said
    assert (tmp_path / name).read_bytes() == b"{}"


def test_a_folder_where_nothing_can_be_kept_is_said_and_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / f".{FILE}.lock").mkdir()
    run = Run(tmp_path / "run")
    assert run.start(RESULT) == SiteReport()
    assert FILE in run.said[0] and "would not notice a ledger that was set back" in run.said[0]
    assert SiteReports(run.folder).last("north").ledger == "c" * 64
