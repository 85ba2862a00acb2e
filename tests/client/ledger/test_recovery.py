"""After a ledger was lost or tampered with: a person says what counts as spent, never less than what is proven."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.consent.policy import PolicyError
from client.consent.site_config import SitePrivacy
from client.ledger.account import RecoveryEntry
from client.ledger.ledger import RECOVERED_EVENT, WITNESS_FILE, Ledger, LedgerError, Witness
from client.ledger.recovery import Spent, parse_spent, plan_recovery, recover
from client.ledger.statement import as_text, view
from client.site.budget_check import NEW_PATIENTS, outlook
from common.audit import head_of, read_entries
from common.config.federation import as_json
from common.errors import ConfigError
from common.privacy.accounting import epsilon_of
from common.protocol.messages import ErrorCode
from tests.client.ledger.test_ledger import (
    DELTA,
    REPLACING,
    ROUND,
    TAMPERING,
    TRAINING,
    budget,
    edit_number,
    federation,
    of,
    patients,
    remove_both,
)
from tests.client.ledger.test_statement import planned

ENOUGH = Spent(8.0, DELTA / 2)
EVERYTHING = Spent(None, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.jsonl"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def spend_three(path: Path, state: Path | None) -> tuple[bytes, bytes]:
    """Three rounds; returns file and head as they were after the first."""
    budget(path, patients("a"), state=state).spend("r", 1, ROUND)
    copy = (path.read_bytes(), head_of(path).read_bytes())
    for number in (2, 3):
        budget(path, patients("a"), state=state).spend("r", number, ROUND)
    return copy


def recovered(path: Path, state: Path | None, spent: Spent = ENOUGH) -> RecoveryEntry:
    witness = Witness(state) if state else None
    return recover(Ledger(path, witness), witness, spent, "disk failed", "Dr. Example")


def is_usable(path: Path, state: Path | None) -> bool:
    return Ledger(path, state and Witness(state)).prove()[1] is not None


@pytest.mark.parametrize("tamper", TAMPERING)
@pytest.mark.parametrize("witnessed", [False, True])
def test_a_ledger_that_was_tampered_with_can_be_begun_anew(
    path: Path, state: Path, tamper: Callable[[Path], None], witnessed: bool
) -> None:
    known = state if witnessed else None
    spend_three(path, known)
    tamper(path)
    entry = recovered(path, known)
    assert is_usable(path, known)
    [first] = read_entries(path)
    assert (first.event, first.details["user"], first.details["reason"]) == ("recovery", "Dr. Example", "disk failed")
    assert first.details["account"] and first.details["epsilon"] == 8
    aside = [file for file in path.parent.iterdir() if "set-aside" in file.name and not file.name.endswith(".head")]
    assert [file.name for file in aside] == ([entry.set_aside] if entry.set_aside else [])
    budget(path, patients("a"), limit=100, state=known).spend("r", 4, ROUND)
    assert is_usable(path, known)


@pytest.mark.parametrize("replace", REPLACING)
def test_a_ledger_that_was_replaced_can_be_begun_anew(
    path: Path, state: Path, replace: Callable[[Path, tuple[bytes, bytes]], None]
) -> None:
    replace(path, spend_three(path, state))
    with pytest.raises(LedgerError):
        is_usable(path, state)
    recovered(path, state)
    assert is_usable(path, state)
    [logged] = [entry for entry in read_entries(state / "audit.jsonl") if entry.event == RECOVERED_EVENT]
    assert logged.details["ledger_hash"] == read_entries(path)[0].hash
    # The notes count from the recovery on, either of them alone.
    (state / WITNESS_FILE).unlink()
    path.unlink()
    with pytest.raises(LedgerError):
        is_usable(path, state)


def test_the_old_file_is_kept_as_it_was(path: Path) -> None:
    spend_three(path, None)
    edit_number(path)
    before, head = path.read_bytes(), head_of(path).read_bytes()
    entry = recovered(path, None)
    assert entry.set_aside is not None
    kept = path.with_name(entry.set_aside)
    assert (kept.read_bytes(), head_of(kept).read_bytes()) == (before, head)
    assert entry.set_aside_sha256 == hashlib.sha256(before).hexdigest()
    path.write_bytes(b"nonsense\n")
    again = recovered(path, None)
    assert again.set_aside != entry.set_aside and kept.read_bytes() == before, "a second recovery keeps both"


def test_a_whole_ledger_is_not_recovered(path: Path, state: Path) -> None:
    spend_three(path, state)
    before = path.read_bytes()
    for known in (None, state):
        with pytest.raises(ConfigError, match="there is nothing to recover"):
            recovered(path, known)
    assert path.read_bytes() == before


def test_a_ledger_in_another_place_is_not_lost(path: Path, state: Path, tmp_path: Path) -> None:
    spend_three(path, state)
    with pytest.raises(ConfigError, match=f"give it \\(--ledger {path}\\)"):
        recovered(tmp_path / "wrong.jsonl", state)
    edit_number(path)
    recovered(tmp_path / "new-place.jsonl", state)
    assert is_usable(tmp_path / "new-place.jsonl", state)


def test_a_ledger_lost_with_all_that_knew_it_can_be_declared(path: Path) -> None:
    recovered(path, None)
    assert Ledger(path).read().epsilon({"training": patients("anybody")}, DELTA) == 8


@pytest.mark.parametrize("lose", [lambda path: remove_both(path, (b"", b"")), edit_number])
def test_less_than_what_is_proven_is_refused(path: Path, state: Path, lose: Callable[[Path], None]) -> None:
    """The audit log knows the noise of every round, so it knows epsilon at any delta."""
    spend_three(path, state)
    lose(path)
    delta = DELTA / 10
    proven = epsilon_of([TRAINING] * 3, delta)
    assert proven > of(*[TRAINING] * 3)
    with pytest.raises(ConfigError, match="prove"):
        recovered(path, state, Spent(proven * 0.999, delta))
    with pytest.raises(LedgerError):
        is_usable(path, state)
    assert recovered(path, state, Spent(proven * 1.001, delta)).known == pytest.approx(proven)


def test_what_is_readable_of_the_old_file_counts_too(path: Path) -> None:
    spend_three(path, None)
    head_of(path).unlink()
    with pytest.raises(ConfigError, match="prove"):
        recovered(path, None, Spent(of(TRAINING), DELTA))
    recovered(path, None, Spent(of(*[TRAINING] * 3), DELTA))


def test_a_recovery_cannot_undo_a_recovery(path: Path, state: Path) -> None:
    spend_three(path, state)
    remove_both(path, (b"", b""))
    recovered(path, state, Spent(50.0, DELTA / 2))
    remove_both(path, (b"", b""))
    with pytest.raises(ConfigError, match="prove"):
        recovered(path, state, Spent(49.0, DELTA / 2))
    recovered(path, state, EVERYTHING)


def test_what_was_spent_adds_to_what_is_spent(path: Path) -> None:
    """Of the past a single pair is known, so epsilons and deltas add up."""
    recovered(path, None, Spent(3.0, 4e-6))
    rest = epsilon_of([TRAINING], DELTA - 4e-6)
    assert budget(path, patients("a")).spend("r", 1, ROUND) == 3 + rest
    account = Ledger(path).read()
    assert account.epsilon({"training": patients("a")}, DELTA) == 3 + rest
    assert account.epsilon({"training": patients("new")}, DELTA) == 3, "nobody knows who took part: new ones count too"
    assert account.epsilon({"training": patients("a")}, 3e-6) == math.inf
    assert account.epsilons({"training": patients("a", "new")}, DELTA) == [(3, 1), (3 + rest, 1)]
    limit = 3 + (rest + epsilon_of([TRAINING] * 2, DELTA - 4e-6)) / 2
    with pytest.raises(PolicyError, match="max_epsilon"):
        budget(path, patients("a"), limit=limit).spend("r", 2, ROUND)


@pytest.mark.parametrize("spent", [EVERYTHING, Spent(1.0, DELTA), Spent(1.0, 1e-3)])
def test_where_nothing_is_left_every_round_is_refused(path: Path, spent: Spent) -> None:
    recovered(path, None, spent)
    before = path.read_bytes()
    for limit in (None, 1000):
        with pytest.raises(PolicyError) as refused:
            budget(path, patients("a"), limit=limit).spend("r", 1, ROUND)
        assert refused.value.code is ErrorCode.PRIVACY_BUDGET
    assert path.read_bytes() == before
    for limit in (None, 1000):
        told = outlook(*planned(federation()), SitePrivacy(max_epsilon=limit), Ledger(path).read(), NEW_PATIENTS)
        assert not told.fits and "leaves nothing" in str(told)
        assert told.as_values()["after"] is None


def test_a_task_that_costs_nothing_reports_no_number_where_there_is_none(path: Path) -> None:
    recovered(path, None, EVERYTHING)
    with pytest.raises(PolicyError, match="was recovered"):
        budget(path, patients("a")).spend("r", 1, [])


def test_a_second_site_adds_its_own_entry(path: Path, state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    spend_three(path, state)
    budget(path, patients("b"), name="second", state=other).spend("r", 1, ROUND)
    path.unlink()
    recovered(path, state)
    budget(path, patients("a"), state=state).spend("r", 5, ROUND)
    with pytest.raises(LedgerError, match="replaced"):
        is_usable(path, other)
    entry = recovered(path, other, Spent(9.0, DELTA / 2))
    assert entry.set_aside is None
    assert is_usable(path, state) and is_usable(path, other)
    assert [entry.event for entry in read_entries(path)].count("recovery") == 2
    assert Ledger(path).read().epsilon({"training": patients("new")}, DELTA) == 9, "the same past, told twice"


class KilledError(BaseException):
    """Nothing of ours catches it: what is on disk is what a killed process leaves."""


@pytest.mark.parametrize("witnessed", [False, True])
def test_a_recovery_that_is_killed_leaves_a_ledger_that_is_refused_or_recovered(
    witnessed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its steps in turn: never does the ledger look as if nothing had been spent."""
    for at in itertools.count(1):
        own = tmp_path / f"{at}"
        own.mkdir()
        book, known = own / "ledger.jsonl", own if witnessed else None
        spend_three(book, known)
        edit_number(book)
        steps = itertools.count(1)

        def dying(*arguments: Any, real: Callable[..., Any], **options: Any) -> Any:
            if next(steps) == at:  # noqa: B023 -- called within this turn of the loop
                raise KilledError
            return real(*arguments, **options)

        with monkeypatch.context() as patched, contextlib.suppress(KilledError):
            for name in ("link", "replace", "rename", "pwrite"):
                patched.setattr(os, name, functools.partial(dying, real=getattr(os, name)))
            recovered(book, known)
            assert at > 5, "there are steps to be killed at"
            return
        try:
            account = Ledger(book, known and Witness(known)).read()
        except LedgerError:
            recovered(book, known)
            account = Ledger(book, known and Witness(known)).read()
        assert account.epsilon({"training": patients("a")}, DELTA) == 8


def test_it_is_shown_to_readers(path: Path) -> None:
    spend_three(path, None)
    edit_number(path)
    entry = recovered(path, None, Spent(8.0, DELTA / 2))
    content = {"ledger": "l"} | view(Ledger(path).read(), SitePrivacy(max_epsilon=10, delta=DELTA))
    text = as_text(content, 10_000)
    assert "RECOVERED" in text and "by Dr. Example (account " in text and "disk failed" in text
    assert f"epsilon 8 at delta 5e-06 before; {entry.known:.3g} was proven." in text
    assert f"kept as {entry.set_aside}" in text and "Nothing was spent since then." in text
    assert "Infinity" not in as_json(content)


def test_everything_is_shown_in_words(path: Path) -> None:
    recovered(path, None, Spent(1.0, DELTA / 2))
    budget(path, patients("a")).spend("r", 1, ROUND)
    path.write_bytes(path.read_bytes()[:-5])
    recovered(path, None, EVERYTHING)
    content = {"ledger": "l"} | view(Ledger(path).read(), SitePrivacy(delta=DELTA))
    assert "is assumed to have spent everything before" in as_text(content, 10_000)
    assert "Infinity" not in as_json(content)


@pytest.mark.parametrize("text", ["", "8", "8@", "@1e-5", "8@1", "8@0", "-1@1e-5", "nan@1e-5", "inf@1e-5", "all"])
def test_what_is_spent_is_a_pair_or_everything(text: str) -> None:
    with pytest.raises(ConfigError, match="--spent"):
        parse_spent(text)
    assert parse_spent("8@5e-6") == Spent(8.0, 5e-6)
    assert parse_spent("everything") == EVERYTHING


def test_a_reason_must_be_given(path: Path) -> None:
    with pytest.raises(ConfigError, match="--reason"):
        recover(Ledger(path), None, EVERYTHING, "  ", None)
    assert not path.exists()


@pytest.mark.parametrize("damage", [b"nonsense\n", b""])
def test_a_site_whose_own_log_is_broken_cannot_recover(path: Path, state: Path, damage: bytes) -> None:
    """Without the log nobody would know that this ledger is the one that counts."""
    spend_three(path, state)
    path.unlink()
    (state / "audit.jsonl").write_bytes(damage)
    with pytest.raises(LedgerError, match=r"audit\.jsonl"):
        recovered(path, state)
    assert not path.exists()


def test_a_head_that_is_no_file_is_named(path: Path) -> None:
    spend_three(path, None)
    head_of(path).unlink()
    head_of(path).mkdir()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="cannot be written or moved"):
        recovered(path, None)
    assert path.read_bytes() == before
    assert plan_recovery(Ledger(path), None, ENOUGH).problem


def test_a_damaged_note_is_mended(path: Path, state: Path) -> None:
    spend_three(path, state)
    (state / WITNESS_FILE).write_text("{}")
    recovered(path, state)
    assert is_usable(path, state)
