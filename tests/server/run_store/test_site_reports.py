"""What sites reported of their ledgers and audit logs comes back to them, also after a restart."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import DamagedFileError
from common.protocol.messages import Hello, Result, SiteInfo
from common.system.state_file import write_sealed
from server.run_store.site_reports import FILE, SiteReports

INFO = SiteInfo("north", 4, 1, "1", "1.42.0", "2.10", "3.11", "cpu", "float32", "a" * 64, "b" * 64)
RESULT = Result(
    "north",
    "r",
    1,
    4,
    1,
    5,
    0.5,
    0.4,
    {1: 0.8},
    1.0,
    0.1,
    0.8,
    0.1,
    2.5,
    None,
    ledger_head="c" * 64,
    audit_head="d" * 64,
)


def test_the_last_report_of_each_site_is_handed_back(tmp_path: Path) -> None:
    reports = SiteReports(tmp_path)
    reports.note(replace(INFO, site="south"))
    reports.note(INFO)
    assert Hello("r", "d", **reports.last("north").as_seen()).ledger_seen == "a" * 64
    assert math.isnan(Hello("r", "d", **reports.last("north").as_seen()).epsilon_seen)
    reports.note(RESULT)
    for known in (reports, SiteReports(tmp_path)):
        hello = Hello("r", "d", **known.last("north").as_seen())
        assert (hello.epsilon_seen, hello.ledger_seen, hello.audit_seen) == (2.5, "c" * 64, "d" * 64)
        assert known.last("south").audit == "b" * 64
    reports.note(INFO)
    assert reports.last("north").epsilon == 2.5, "a hello holds no epsilon, so the last one stays"


@pytest.mark.parametrize("epsilon", [math.nan, -1.0])
def test_an_epsilon_that_is_none_is_not_kept(tmp_path: Path, epsilon: float) -> None:
    reports = SiteReports(tmp_path)
    reports.note(replace(RESULT, epsilon=epsilon))
    assert reports.last("north").epsilon is None


def test_without_reports_nothing_is_written(tmp_path: Path) -> None:
    reports = SiteReports(tmp_path)
    reports.note(replace(INFO, ledger_head=None, audit_head=None))
    assert not (tmp_path / FILE).exists()
    assert reports.last("north").as_seen()["audit_seen"] is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"north": {"audit": "x"}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DamagedFileError, match=FILE):
        SiteReports(tmp_path).last("north")


@pytest.mark.parametrize("change", [(b"2.5", b"1.5"), (b"c", b"d"), (b"}\n", b"}")])
def test_a_changed_byte_is_named(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    SiteReports(tmp_path).note(RESULT)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes().replace(*change, 1))
    with pytest.raises(DamagedFileError, match=FILE):
        SiteReports(tmp_path).last("north")


@pytest.mark.parametrize("content", [{"north": {"audit": "x"}}, {"north": {"epsilon": -1}}, {"north": []}])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: dict[str, object]) -> None:
    write_sealed(tmp_path / FILE, content)
    with pytest.raises(DamagedFileError, match=FILE):
        SiteReports(tmp_path).last("north")
