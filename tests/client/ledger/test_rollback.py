"""A site that was set back to older files is noticed with its server's help, and goes on once a person has looked."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cli.entry import main
from client.ledger.account import RoundEntry, SpendLine
from client.ledger.ledger import WITNESS_FILE, Ledger, LedgerError, Witness
from client.ledger.patient_identity import dataset_of
from client.ledger.rollback import (
    SETTLED,
    Claim,
    RollbackGuard,
    RolledBackError,
    kept_file,
    pending_claim,
    recorded_claim,
)
from client.site.start import SiteOptions, _check_rollback
from common.audit import AuditLog, head_of, read_entries
from common.errors import FedvoxError
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo
from server.run_store.ledgers_seen import ledgers_carried_over
from server.run_store.site_reports import SiteReports
from tests.client.ledger.test_ledger import DELTA, ROUND, TRAINING, budget, of, patients

INFO = SiteInfo("north", 4, 1, "1", "1.42.0", "2.10", "3.11", "cpu", "float32")
RESULT = Result("north", "r", 1, 4, 1, 5, 0.5, 0.4, {1: 0.8}, 1.0, 0.1, 0.8, 0.1)
PEOPLE = {"training": patients("a"), "validation": patients("v")}


class Hospital:
    """A site and its server, without the line between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.state = self.files / "state"
        self.ledger = self.files / "data" / "ledger.jsonl"
        self.run = folder / "run"
        self.run.mkdir(parents=True)
        self.state.mkdir(parents=True)

    def hello(self) -> None:
        """A restart of site and server: both know only what their files hold."""
        seen = SiteReports(self.run).last("north").as_seen()
        self._answer(Hello("r", "d", **seen), lambda: INFO)

    def round(self, number: int = 1, is_private: bool = True) -> None:
        def work() -> Result:
            epsilon = math.nan
            if is_private:
                epsilon = budget(self.ledger, patients("a"), state=self.state).spend("r", number, ROUND)
            return replace(RESULT, round=number, epsilon=epsilon)

        self._answer(Hello("r", "d", **SiteReports(self.run).last("north").as_seen()), work)

    def cheap_round(self, number: int) -> None:
        """As ``round``, without the accountant, which takes its time."""

        def work() -> Result:
            line = SpendLine(dataset=dataset_of(PEOPLE["training"]), **vars(TRAINING))
            entry = RoundEntry(
                federation="f",
                digest="d",
                run="r",
                round=number,
                spends=(line,),
                epsilon=1,
                max_epsilon=None,
                delta=0.1,
            )
            Ledger(self.ledger, Witness(self.state)).spend(PEOPLE, lambda account: entry)  # type: ignore[arg-type]
            return replace(RESULT, epsilon=1.0)

        self._answer(Hello("r", "d", **SiteReports(self.run).last("north").as_seen()), work)

    def _answer(self, question: Hello, work: Callable[[], SiteInfo | Result]) -> None:
        audit = AuditLog(self.state / "audit.jsonl")
        audit.append("task_accepted", digest="d")
        guard = self.guard()
        guard.check(question)
        answer = guard.stamp(work())
        audit.append("sent", kind="train")
        assert not isinstance(answer, Failure)
        SiteReports(self.run).note(answer)

    def new_run(self, name: str) -> None:
        """The server begins a new run, and remembers the ledgers of the one before."""
        with ledgers_carried_over(self.run, "9" * 64, str):
            pass
        self.run = self.folder / name
        self.run.mkdir()
        with ledgers_carried_over(self.run, "9" * 64, str):
            pass

    def new_kit(self, name: str) -> None:
        """A new kit begins a new state folder, and its federation a new run."""
        self.new_run(name)
        shutil.rmtree(self.state)
        self.state.mkdir()

    def guard(self) -> RollbackGuard:
        return RollbackGuard(self.state, Ledger(self.ledger, Witness(self.state)), DELTA)

    def tool(self, *arguments: str) -> int:
        kit = ["ledger", "--ledger", str(self.ledger), "--state", str(self.state)]
        return main([*kit, *arguments])

    def copy(self, name: str = "copy") -> Path:
        shutil.copytree(self.files, self.folder / name)
        return self.folder / name

    def restore(self, copy: Path, *parts: str) -> None:
        for part in parts or ("data", "state"):
            target = self.files / part
            if (copy / part).is_dir():
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(copy / part, target)
            else:
                shutil.copy(copy / part, target)


@pytest.fixture
def site(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


AUDIT = ("state/audit.jsonl", "state/audit.jsonl.head")
NOTE = f"state/{WITNESS_FILE}"
LEDGER = ("data/ledger.jsonl", "data/ledger.jsonl.head")


@pytest.mark.parametrize(
    "parts", [(), (*LEDGER, NOTE, *AUDIT), AUDIT], ids=["machine", "ledger and notes", "audit log"]
)
def test_older_files_that_fit_together_are_refused(site: Hospital, parts: tuple[str, ...]) -> None:
    site.round(1)
    copy = site.copy()
    site.round(2)
    site.restore(copy, *parts)
    if parts != AUDIT:
        assert Ledger(site.ledger, Witness(site.state)).prove()[1] is not None, "by itself it cannot be told"
    for work in (site.hello, lambda: site.round(3)):
        with pytest.raises(RolledBackError, match="older than what this site has reported") as refused:
            work()
        assert refused.value.code is ErrorCode.ROLLED_BACK
    assert [entry.event for entry in read_entries(site.state / "audit.jsonl")].count("rolled_back") == 1


@pytest.mark.parametrize("what", ["state", "files"])
def test_files_that_are_gone_are_refused(site: Hospital, what: str) -> None:
    site.round(1)
    shutil.rmtree(site.state if what == "state" else site.files)
    site.state.mkdir(parents=True)
    with pytest.raises(RolledBackError):
        site.hello()


def test_an_older_ledger_is_refused_by_a_new_run_too_and_a_new_audit_log_is_not(site: Hospital) -> None:
    site.round(1)
    copy = site.copy()
    site.round(2)
    site.new_run("second")
    newest = site.copy("newest")
    shutil.rmtree(site.state)
    site.state.mkdir()
    site.hello()
    site.new_run("third")
    site.restore(copy)
    with pytest.raises(RolledBackError, match=r"ledger\.jsonl: older than what this site has reported"):
        site.hello()
    site.restore(newest)
    site.hello()


def cut_last_lines(log: Path, count: int) -> None:
    """Cut a log's end and make its head fit."""
    entries = read_entries(log)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-count]))
    last = entries[-count - 1]
    head_of(log).write_text(f'{{"n": {last.n}, "hash": "{last.hash}"}}\n')


@pytest.mark.parametrize("is_private", [True, False])
def test_a_cut_tail_of_the_audit_log_is_refused_without_privacy_too(site: Hospital, is_private: bool) -> None:
    for number in (1, 2):
        site.round(number, is_private)
    cut_last_lines(site.state / "audit.jsonl", 3)
    AuditLog(site.state / "audit.jsonl").append("task_accepted", digest="d")
    with pytest.raises((RolledBackError, LedgerError)):
        site.hello()


def test_a_ledger_alone_that_is_older_is_the_ledgers_own_error(site: Hospital) -> None:
    site.round(1)
    copy = site.copy()
    site.round(2)
    site.restore(copy, *LEDGER)
    with pytest.raises(LedgerError, match="older copy"):
        site.hello()
    assert recorded_claim(site.state) is None


def test_the_newest_files_put_back_go_on_without_a_person(site: Hospital) -> None:
    site.round(1)
    old = site.copy("old")
    site.round(2)
    new = site.copy("new")
    site.restore(old)
    with pytest.raises(RolledBackError):
        site.hello()
    site.restore(new)
    site.hello()
    newest = site.copy("newest")
    site.restore(old, *AUDIT)
    with pytest.raises(RolledBackError):
        site.hello()
    site.restore(newest, *AUDIT)
    site.round(3)


def test_what_is_no_rollback_needs_no_person(site: Hospital) -> None:
    """First contact, restarts of both sides, a server restored or begun anew, a reply of which nothing arrived."""
    site.hello()
    site.round(1)
    reports = (site.run / "site-reports.json").read_bytes()
    site.round(2)
    site.hello()
    (site.run / "site-reports.json").write_bytes(reports)
    site.hello()
    site.round(3)
    (site.run / "site-reports.json").write_bytes(reports)
    site.round(4)
    (site.run / "site-reports.json").unlink()
    site.round(5)
    site.guard().check(Hello("another", "d"))
    assert recorded_claim(site.state) is None


def test_a_site_whose_files_are_new_is_welcome_where_it_never_was(site: Hospital, tmp_path: Path) -> None:
    site.round(1)
    Hospital(tmp_path / "other").round(1)


def test_a_person_recovers_and_the_servers_epsilon_is_the_least(
    site: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    site.round(1)
    copy = site.copy()
    for number in (2, 3):
        site.round(number)
    site.restore(copy)
    with pytest.raises(RolledBackError):
        site.hello()
    assert site.tool() == 0 and "STOPPED until a person has looked" in capsys.readouterr().out
    reason = ("--reason", "restored last week's machine", "--yes")
    less = f"{(of(TRAINING) + of(*[TRAINING] * 3)) / 2}@{DELTA}"
    assert site.tool("--recover", "--spent", less, *reason) != 0
    assert "the site's files and the server say" in capsys.readouterr().err
    assert site.tool("--recover", "--spent", f"8@{DELTA / 2}", *reason) == 0
    site.hello()
    site.round(4)
    assert pending_claim(site.state, Ledger(site.ledger, Witness(site.state))) is None
    account = Ledger(site.ledger, Witness(site.state)).read()
    assert account.epsilon({"training": patients("a")}, DELTA) > 8
    [settled] = [entry for entry in read_entries(site.state / "audit.jsonl") if entry.event == SETTLED]
    assert (settled.details["reason"], settled.details["ledger_kept"]) == (reason[1], False)


def test_an_ordinary_recovery_is_no_rollback(site: Hospital) -> None:
    """The server still names an entry of the lost ledger, which the audit log knows."""
    site.round(1)
    site.ledger.unlink()
    head_of(site.ledger).unlink()
    assert site.tool("--recover", "--spent", f"8@{DELTA / 2}", "--reason", "disk failed", "--yes") == 0
    site.hello()
    site.round(2)
    assert recorded_claim(site.state) is None


REASON = ("--reason", "disk failed", "--yes")
SPENT = ("--recover", "--spent", f"8@{DELTA / 2}", *REASON)
KEEP = ("--recover", "--keep", *REASON)


def lose_ledger(site: Hospital, old: Path) -> None:
    site.ledger.unlink()
    head_of(site.ledger).unlink()


def edit_ledger(site: Hospital, old: Path) -> None:
    site.ledger.write_bytes(b"nonsense\n")


def restore_machine(site: Hospital, old: Path) -> None:
    site.restore(old)
    with pytest.raises(RolledBackError):
        site.hello()


@pytest.mark.parametrize("harm", [lose_ledger, edit_ledger, restore_machine])
@pytest.mark.parametrize("is_reply_lost", [False, True])
def test_a_recovered_ledger_holds_for_the_next_kits_too(
    site: Hospital, harm: Callable[[Hospital, Path], None], is_reply_lost: bool
) -> None:
    """The server still names an entry of the old ledger, and a new state folder knows nothing of it."""
    site.cheap_round(1)
    old = site.copy()
    site.cheap_round(2)
    if is_reply_lost:
        told = (site.run / "site-reports.json").read_bytes()
        site.cheap_round(3)
        (site.run / "site-reports.json").write_bytes(told)
    harm(site, old)
    assert site.tool(*SPENT) == 0
    site.new_kit("second")
    site.hello()
    with pytest.raises(RolledBackError):
        site.guard().check(lie(1.0))
    assert site.tool(*SPENT) == 0
    site.hello()
    site.new_kit("third")
    site.hello()
    site.guard().check(Hello("r", "d", ledger_seen=lie().ledger_seen))
    copy = site.copy("recovered")
    site.cheap_round(4)
    site.restore(copy)
    with pytest.raises(RolledBackError):
        site.hello()


def test_a_recovery_that_goes_on_supersedes_nothing_that_the_ledger_holds(site: Hospital) -> None:
    site.cheap_round(1)
    lose_ledger(site, site.ledger)
    assert site.tool(*SPENT) == 0
    site.cheap_round(2)
    with pytest.raises(RolledBackError):
        site.guard().check(lie(1.0))
    assert site.tool(*SPENT) == 0
    entries = read_entries(site.ledger)
    first, second = (set(entry.details["superseded"]) for entry in entries if entry.event == "recovery")
    held = {entry.hash for entry in entries}
    assert first and not held & first and not held & second
    assert lie().ledger_seen in second


def test_what_a_person_kept_holds_for_the_next_kits_too(site: Hospital) -> None:
    """Without privacy, a new state folder never reports an entry of the ledger, and the server goes on naming one."""
    site.cheap_round(1)
    old = site.copy()
    site.cheap_round(2)
    for name in ("second", "third"):
        site.new_kit(name)
        site.restore(old, *LEDGER)
        if name == "second":
            with pytest.raises(RolledBackError):
                site.hello()
            assert site.tool(*KEEP) == 0
        site.hello()
        site.round(1, is_private=False)
        assert SiteReports(site.run).last("north").ledger not in {entry.hash for entry in read_entries(site.ledger)}
    with pytest.raises(RolledBackError):
        site.guard().check(lie())


def test_keeping_for_the_audit_log_alone_settles_no_entry_of_the_ledger(site: Hospital) -> None:
    site.cheap_round(1)
    old = site.copy()
    site.cheap_round(2)
    site.restore(old, *AUDIT)
    with pytest.raises(RolledBackError):
        site.hello()
    assert site.tool(*KEEP) == 0
    site.hello()
    assert not kept_file(site.ledger).exists()
    site.new_kit("second")
    site.restore(old, *LEDGER)
    with pytest.raises(RolledBackError):
        site.hello()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"x": 1, "sha256": "0"}'])
def test_damaged_decisions_to_keep_a_ledger_are_named(site: Hospital, content: bytes) -> None:
    site.cheap_round(1)
    kept_file(site.ledger).write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl\.kept.*remove it"):
        site.hello()


def lie(epsilon: float = 1e300, digest: str = "ab" * 32) -> Hello:
    return Hello("r", "d", epsilon, digest, digest[::-1])


def test_a_server_that_lies_stops_the_site_and_does_no_more(site: Hospital) -> None:
    site.round(1)
    before = (site.ledger.read_bytes(), head_of(site.ledger).read_bytes())
    for _ in range(3):
        with pytest.raises(RolledBackError):
            site.guard().check(lie())
        with pytest.raises(RolledBackError):
            site.hello()
    assert (site.ledger.read_bytes(), head_of(site.ledger).read_bytes()) == before
    assert site.tool("--recover", "--keep", "--reason", "nothing was restored here", "--yes") == 0
    assert (site.ledger.read_bytes(), head_of(site.ledger).read_bytes()) == before
    site.hello()
    site.guard().check(lie())  # it has been looked at
    with pytest.raises(RolledBackError):
        site.guard().check(lie(digest="cd" * 32))


def test_keeping_is_for_a_site_that_is_stopped(site: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    site.round(1)
    assert site.tool("--recover", "--keep", "--reason", "why not", "--yes") != 0
    assert "nothing to keep" in capsys.readouterr().err
    with pytest.raises(RolledBackError):
        site.guard().check(lie())
    assert site.tool("--recover", "--keep", "--reason", " ", "--yes") != 0
    assert site.tool("--recover", "--keep", "--spent", "8@1e-6", "--reason", "both", "--yes") != 0
    assert site.tool("--keep") != 0
    with pytest.raises(RolledBackError):
        site.hello()


def test_preflight_says_so(site: Hospital, tmp_path: Path) -> None:
    options = SiteOptions(
        kit=tmp_path, data=tmp_path, state=site.state, shared=tmp_path, cache=None, ledger=site.ledger
    )
    site.round(1)
    assert list(_check_rollback(options)) == []
    with pytest.raises(RolledBackError):
        site.guard().check(lie(8.0))
    [item] = _check_rollback(options)
    assert item.severity == "error" and "--recover" in item.text and "epsilon 8 at delta 1e-05" in item.text


def test_a_damaged_entry_is_named(site: Hospital) -> None:
    AuditLog(site.state / "audit.jsonl").append("rolled_back", ledger="nonsense")
    with pytest.raises(FedvoxError, match="line 1"):
        site.hello()


def test_an_answer_holds_what_was_last_written(site: Hospital) -> None:
    site.round(1)
    stamped = site.guard().stamp(INFO)
    assert isinstance(stamped, SiteInfo)
    assert stamped.ledger_head == read_entries(site.ledger)[-1].hash
    assert stamped.audit_head == read_entries(site.state / "audit.jsonl")[-1].hash
    failure = Failure(ErrorCode.PAUSED, "PolicyError")
    assert site.guard().stamp(failure) == failure
    assert str(Claim(ledger="ab" * 32)) == "entry abababababab of the ledger"


@given(st.lists(st.sampled_from(["round", "hello", "copy", "restore", "lose reply"]), max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_site_is_stopped_if_and_only_if_it_knows_less_than_it_has_told(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """Against a list of what has happened: a copy is older if something was reported after it was made."""
    site = Hospital(tmp_path_factory.mktemp("site"))
    copies: list[tuple[Path, int]] = []
    reported = holds = 0
    for number, step in enumerate(steps, start=1):
        if step == "copy":
            copies.append((site.copy(f"copy {number}"), holds))
        elif step == "restore" and copies:
            copy, holds = copies[len(copies) // 2]
            site.restore(copy) if (copy / "data").exists() else (
                shutil.rmtree(site.files),
                shutil.copytree(copy, site.files),
            )
        elif step in ("round", "hello", "lose reply"):
            before = (site.run / "site-reports.json").read_bytes() if reported else None
            work = site.hello if step == "hello" else lambda number=number: site.cheap_round(number)
            if holds < reported:
                with pytest.raises(RolledBackError):
                    work()
                return
            work()
            holds = number
            if step == "lose reply" and before is not None:
                (site.run / "site-reports.json").write_bytes(before)
            else:
                reported = number
