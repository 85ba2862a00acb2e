"""The ledger: what is spent stays spent, whoever restarts, renames, kills or edits what."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.consent.policy import PolicyError
from client.consent.site_config import SiteConfig
from client.ledger.account import Account, RoundEntry, SpendLine, TimedRound
from client.ledger.budget import LedgerBudget
from client.ledger.ledger import WITNESS_FILE, Ledger, LedgerError, Witness
from client.ledger.patient_identity import Patient, dataset_of
from client.state_folder import default_ledger
from common.audit import AuditLog, head_of, read_entries
from common.config.federation import FederationConfig
from common.plan.privacy import Spend
from common.privacy.accounting import epsilon_of
from common.protocol.messages import ErrorCode
from tests import tiny

REPOSITORY = Path(__file__).resolve().parents[3]
DELTA = 1e-5
TRAINING, VALIDATION = Spend("training", 1.0, 0.1, 10), Spend("validation", 5.0, 1.0, 1)
ROUND = (TRAINING, VALIDATION)


def patients(*names: str) -> list[Patient]:
    return [(hashlib.sha256(name.encode()).hexdigest(),) for name in names]


def federation(name: str = "first") -> FederationConfig:
    return FederationConfig.model_validate({"name": name, "rounds": 3, "privacy": {"epsilon": 8, "delta": DELTA}})


def site(limit: float | None = None) -> SiteConfig:
    return SiteConfig.model_validate({"privacy": {"max_epsilon": limit, "delta": DELTA}})


def budget(
    path: Path,
    train: list[Patient],
    validation: list[Patient] | None = None,
    limit: float | None = None,
    name: str = "first",
    state: Path | None = None,
) -> LedgerBudget:
    people = {"training": train, "validation": patients("v") if validation is None else validation}
    return LedgerBudget(Ledger(path, state and Witness(state)), federation(name), people, site(limit))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.jsonl"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def of(*spends: Spend) -> float:
    return epsilon_of(spends, DELTA)


def test_rounds_and_runs_compose(path: Path) -> None:
    """Composed, not added up: ten steps cost much less than ten times one."""
    first = [budget(path, patients("a", "b")).spend("run 1", number, ROUND) for number in (1, 2)]
    again = budget(path, patients("b", "a")).spend("run 2", 1, ROUND)
    assert first == [of(TRAINING), of(TRAINING, TRAINING)]
    assert again == of(*[TRAINING] * 3)
    assert first[0] < again < 3 * first[0]
    assert [item.entry.run for item in Ledger(path).read().rounds] == ["run 1", "run 1", "run 2"]
    assert [entry.event for entry in read_entries(path)].count("dataset") == 2, "each set of patients is listed once"


def test_a_server_hears_of_its_own_federation_and_the_limit_counts_all(path: Path) -> None:
    budget(path, patients("a")).spend("r", 1, ROUND)
    assert budget(path, patients("a"), name="second").spend("r", 1, ROUND) == of(TRAINING)
    account = Ledger(path).read()
    assert account.epsilon({"training": patients("a")}, DELTA) == of(TRAINING, TRAINING)
    limit = (of(TRAINING, TRAINING) + of(*[TRAINING] * 3)) / 2
    with pytest.raises(PolicyError) as refused:
        budget(path, patients("a"), limit=limit, name="third").spend("r", 1, ROUND)
    assert refused.value.code is ErrorCode.PRIVACY_BUDGET


def test_no_federation_costs_a_patient_more_than_was_approved(path: Path) -> None:
    """Also where the count of its rounds was lost: the ledger itself knows."""

    def approved(attempt: str = "", name: str = "first") -> LedgerBudget:
        people = {"training": patients("a"), "validation": patients("v")}
        most = of(TRAINING, TRAINING)
        return LedgerBudget(Ledger(path), federation(name), people, site(), lambda: attempt, lambda: most)  # type: ignore[arg-type]

    approved().spend("r", 1, ROUND)
    assert approved("one").spend("other run", 1, ROUND) == of(TRAINING, TRAINING)
    before = path.read_bytes()
    for run, number in (("r", 2), ("third run", 1)):
        with pytest.raises(PolicyError, match=f"and {of(TRAINING, TRAINING):.2f} is approved") as no:
            approved().spend(run, number, ROUND)
        assert no.value.code is ErrorCode.APPROVAL_USED_UP
    assert approved("one").spend("other run", 1, ROUND) == of(TRAINING, TRAINING), "taken up again after a crash"
    assert path.read_bytes() == before
    assert approved(name="second").spend("r", 1, ROUND) == of(TRAINING)


def test_one_more_patient_does_not_reset_the_budget(path: Path) -> None:
    budget(path, patients("a", "b")).spend("r", 1, ROUND)
    larger = budget(path, patients("a", "b", "new"))
    assert larger.spend("r2", 1, ROUND) == of(TRAINING, TRAINING)
    account = Ledger(path).read()
    assert account.epsilon({"training": patients("new")}, DELTA) == of(TRAINING)
    found = account.epsilons({"training": patients("a", "b", "new", "other")}, DELTA)
    assert found == [(0.0, 1), (of(TRAINING), 1), (of(TRAINING, TRAINING), 2)]


def test_a_patient_pays_for_what_he_was_used_for(path: Path) -> None:
    """Scored on in one run and trained on in the next, he pays both; the others pay their own."""
    budget(path, patients("a"), patients("b")).spend("r", 1, ROUND)
    account = Ledger(path).read()
    assert account.epsilon({"training": patients("a")}, DELTA) == of(TRAINING)
    assert account.epsilon({"training": patients("b")}, DELTA) == of(VALIDATION)
    budget(path, patients("b"), patients("a")).spend("r2", 1, ROUND)
    account = Ledger(path).read()
    for name in ("a", "b"):
        assert account.epsilon({"training": patients(name)}, DELTA) == of(TRAINING, VALIDATION)


def test_patients_who_share_an_image_are_one() -> None:
    [(a,), (b,), (c,), (d,)] = patients("a", "b", "c", "d")
    account = Account({"1" * 64: ((a, b),), "2" * 64: ((b, c),)})
    assert account.memberships([(a,), (c,), (d,), (c, d)]) == {
        # The last one joins d to the others.
        (a,): frozenset({"1" * 64, "2" * 64}),
        (c,): frozenset({"1" * 64, "2" * 64}),
        (d,): frozenset({"1" * 64, "2" * 64}),
        (c, d): frozenset({"1" * 64, "2" * 64}),
    }
    assert account.memberships([(d,)]) == {(d,): frozenset()}


def test_the_limit_refuses_the_right_round_and_writes_nothing(path: Path) -> None:
    limit = (of(*[TRAINING] * 2) + of(*[TRAINING] * 3)) / 2
    site_budget = budget(path, patients("a"), limit=limit)
    for number in (1, 2):
        site_budget.spend("r", number, ROUND)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(PolicyError, match="max_epsilon") as refused:
            site_budget.spend("r", 3, ROUND)
        assert refused.value.code is ErrorCode.PRIVACY_BUDGET
    assert path.read_bytes() == before
    # Scoring a model is the matter of other patients, who have spent less.
    site_budget.spend("r", 3, [VALIDATION])


def test_a_limit_protects_those_whom_a_round_uses(path: Path) -> None:
    """The limit was lowered: who is trained on has spent more by now, and who is scored on has not."""
    budget(path, patients("a")).spend("r", 1, ROUND)
    lowered = (of(VALIDATION, VALIDATION) + of(TRAINING)) / 2
    site_budget = budget(path, patients("a"), limit=lowered)
    with pytest.raises(PolicyError):
        site_budget.spend("r", 2, ROUND)
    assert site_budget.spend("r", 2, [VALIDATION]) == of(TRAINING)


def test_a_task_that_costs_nothing_is_done_and_not_written_down(path: Path) -> None:
    budget(path, patients("a")).spend("r", 1, ROUND)
    before = path.read_bytes()
    assert budget(path, patients("a"), limit=0.01).spend("r", 2, []) == of(TRAINING)
    assert path.read_bytes() == before


@given(
    st.lists(st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.sampled_from([0, 1, 2])), max_size=5),
    st.sets(st.sampled_from("abcdx"), min_size=1),
    st.sets(st.sampled_from("abcdx")),
)
@settings(max_examples=25, deadline=None)
def test_the_largest_epsilon_is_that_of_the_patient_who_spent_most(
    history: list[tuple[set[str], int]], train: set[str], validation: set[str]
) -> None:
    """Against every patient's own history, one after another."""
    mechanisms = [VALIDATION, Spend("training", 3.0, 1.0, 2), Spend("validation", 9.0, 1.0, 1)]
    datasets = {dataset_of(patients(*names)): tuple(patients(*names)) for names, _ in history}
    rounds = []
    for number, (names, kind) in enumerate(history):
        spend, dataset = mechanisms[kind], dataset_of(patients(*names))
        line = SpendLine(dataset=dataset, **vars(spend))
        entry = RoundEntry(
            federation="f", digest="d", run="r", round=number, spends=(line,), epsilon=0, max_epsilon=None, delta=DELTA
        )
        rounds.append(TimedRound("2026", entry))
    account = Account(datasets, rounds)
    people = {"training": patients(*train), "validation": patients(*validation)}
    own = []
    for name in train | validation:
        spends = [mechanisms[kind] for names, kind in history if name in names]
        spends += [item for item in mechanisms if name in people_names(item, train, validation)]
        own.append(of(*spends))
    assert account.epsilon(people, DELTA, mechanisms) == max(own)  # type: ignore[arg-type]


def people_names(spend: Spend, train: set[str], validation: set[str]) -> set[str]:
    return train if spend.purpose == "training" else validation


def test_the_limit_is_meant_at_the_sites_own_delta(path: Path) -> None:
    """The same spend is a larger epsilon at a smaller delta."""
    limit = (epsilon_of([TRAINING], 1e-5) + epsilon_of([TRAINING], 1e-8)) / 2
    strict = SiteConfig.model_validate({"privacy": {"max_epsilon": limit, "delta": 1e-8}})
    people = {"training": patients("a"), "validation": patients("v")}
    with pytest.raises(PolicyError):
        LedgerBudget(Ledger(path), federation(), people, strict).spend("r", 1, ROUND)  # type: ignore[arg-type]
    assert budget(path, patients("a"), limit=limit).spend("r", 1, ROUND) == of(TRAINING)


def test_the_site_file_is_read_for_every_round(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    people = {"training": patients("a"), "validation": patients("v")}
    site_budget = LedgerBudget(Ledger(path), federation(), people, file)  # type: ignore[arg-type]
    site_budget.spend("r", 1, ROUND)
    file.write_text("privacy: {max_epsilon: 0.1}\n")
    with pytest.raises(PolicyError, match=r"allows 0\.1"):
        site_budget.spend("r", 2, ROUND)
    file.write_text("privacy: {max_epsilon: none}\n")
    with pytest.raises(PolicyError) as refused:
        site_budget.spend("r", 2, ROUND)
    assert refused.value.code is ErrorCode.REFUSED_BY_SITE


def test_a_federation_without_privacy_has_no_budget(path: Path) -> None:
    with pytest.raises(ValueError, match="spends none"):
        LedgerBudget(Ledger(path), tiny.federation(), {"training": patients("a")}, site())


def test_how_many_rounds_are_left_is_how_many_are_granted(path: Path) -> None:
    config = federation()
    limit = (of(*[TRAINING] * 5) + of(*[TRAINING] * 6)) / 2
    site_budget = budget(path, patients("a"), limit=limit)
    site_budget.spend("r", 1, ROUND)
    people = {"training": patients("a"), "validation": patients("v")}

    def costs(rounds: int) -> list[Spend]:
        return [Spend("training", 1.0, 0.1, 10 * rounds), Spend("validation", 5.0, 1.0, rounds)]

    left = Ledger(path).read().rounds_left(people, DELTA, limit, costs, 50)  # type: ignore[arg-type]
    assert left == 4
    for number in range(left):
        site_budget.spend("r", 2 + number, ROUND)
    with pytest.raises(PolicyError):
        site_budget.spend("r", 9, ROUND)
    assert Ledger(path).read().rounds_left(people, DELTA, limit, costs, 50) == 0  # type: ignore[arg-type]
    assert config.privacy is not None


def test_a_whole_federation_costs_what_its_noise_was_made_for(path: Path) -> None:
    """So a site whose limit is the federation's own epsilon serves it to its last message, and no further."""
    from common.privacy.calibration import calibrate

    config = federation()
    assert config.privacy is not None
    plan = calibrate(config.privacy, 3, 4)
    assert plan.validation is not None
    site_budget = budget(path, patients("a"), limit=8)
    for number in (1, 2, 3):
        site_budget.spend("r", number, [plan.training, plan.validation])
    spent = site_budget.spend("r", 4, [plan.validation])
    assert 7.8 < spent <= 8
    people = {"training": patients("a"), "validation": patients("v")}
    account = Ledger(path).read()
    assert Account().epsilon(people, DELTA, plan.costs(3, 4)) == account.epsilon(people, DELTA)  # type: ignore[arg-type]
    with pytest.raises(PolicyError):
        site_budget.spend("again", 1, [plan.training, plan.validation])


# --- whoever dies -----------------------------------------------------------------------------------------------------

SPEND = """
import os, signal, sys
from pathlib import Path
from client.ledger.ledger import Ledger, Witness
from client.ledger.budget import LedgerBudget
from tests.client.ledger.test_ledger import ROUND, federation, patients, site
people = {"training": patients("a"), "validation": patients("v")}
limit = float(sys.argv[3]) if len(sys.argv) > 3 else None
budget = LedgerBudget(Ledger(Path(sys.argv[1]), Witness(Path(sys.argv[2]))), federation(), people, site(limit))
"""


def child(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-c", SPEND + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)


def test_a_process_killed_between_spend_and_send_has_spent(path: Path, state: Path) -> None:
    killed = child('budget.spend("r", 1, ROUND)\nos.kill(os.getpid(), signal.SIGKILL)\n', path, state)
    assert killed.wait() == -signal.SIGKILL
    assert budget(path, patients("a"), state=state).spend("r", 1, ROUND) == of(TRAINING, TRAINING)


KILL_IN_WRITE = """
import common.audit
def half(descriptor, data, offset):
    os.pwrite(descriptor, data[: len(data) // 2], offset)
    os.fsync(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
budget.spend("r", 1, ROUND)
common.audit._write_all = half
budget.spend("r", 2, ROUND)
"""


def test_a_process_killed_in_the_middle_of_a_line_had_not_begun_to_train(path: Path, state: Path) -> None:
    """Half a line is on disk; the round that it was for never began, so it is not counted, and nothing is refused."""
    assert child(KILL_IN_WRITE, path, state).wait() == -signal.SIGKILL
    assert not path.read_bytes().endswith(b"\n")
    assert budget(path, patients("a"), state=state).spend("r", 2, ROUND) == of(TRAINING, TRAINING)
    assert len(Ledger(path, Witness(state)).read().rounds) == 2


KILL_BEFORE_HEAD = """
import common.audit
def no_head(*_):
    os.kill(os.getpid(), signal.SIGKILL)
budget.spend("r", 1, ROUND)
common.audit._write_head = no_head
budget.spend("r", 2, ROUND)
"""


def test_a_process_killed_before_it_could_note_the_head_has_spent(path: Path, state: Path) -> None:
    assert child(KILL_BEFORE_HEAD, path, state).wait() == -signal.SIGKILL
    assert budget(path, patients("a"), state=state).spend("r", 2, ROUND) == of(*[TRAINING] * 3)


SPEND_MANY = """
from client.consent.policy import PolicyError
granted = 0
for number in range(4):
    try:
        budget.spend("r", number, ROUND)
        granted += 1
    except PolicyError:
        pass
print(granted)
"""


def test_two_processes_on_one_ledger_do_not_overspend(path: Path, tmp_path: Path) -> None:
    """Each asks for four rounds, the limit allows five to both together."""
    limit = (of(*[TRAINING] * 5) + of(*[TRAINING] * 6)) / 2
    states = [tmp_path / name for name in ("one", "two")]
    for folder in states:
        folder.mkdir()
    processes = [child(SPEND_MANY, path, folder, limit) for folder in states]
    granted = [int(process.communicate()[0]) for process in processes]
    assert sum(granted) == 5
    assert len(Ledger(path).read().rounds) == 5
    for folder in states:
        Ledger(path, Witness(folder)).read()


# --- whoever tampers --------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def edit_number(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"steps":10', b'"steps":1', 1))


def edit_number_and_hash(path: Path) -> None:
    text = lines(path)
    body = text[2].replace(b'"steps":10', b'"steps":1', 1).rsplit(b',"hash"', 1)[0] + b"}"
    own = hashlib.sha256(body).hexdigest().encode()
    path.write_bytes(b"".join([*text[:2], body[:-1] + b',"hash":"' + own + b'"}\n', *text[3:]]))


def delete_line(path: Path) -> None:
    text = lines(path)
    path.write_bytes(b"".join([*text[:2], *text[3:]]))


def swap_lines(path: Path) -> None:
    text = lines(path)
    path.write_bytes(b"".join([*text[:2], text[3], text[2], *text[4:]]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_last_line(path: Path) -> None:
    path.write_bytes(b"".join(lines(path)[:-1]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def damage_head(path: Path) -> None:
    head_of(path).write_text("nonsense")


TAMPERING = [
    edit_number, edit_number_and_hash, delete_line, swap_lines, truncate, cut_last_line, empty, delete, make_a_folder,
    replace_by_link, damage_head,
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERING)
@pytest.mark.parametrize("witnessed", [False, True])
def test_a_ledger_that_was_tampered_with_is_refused(
    path: Path, state: Path, tamper: Callable[[Path], None], witnessed: bool
) -> None:
    """The chain and its head show all of these, also to a site that was installed anew."""
    known = state if witnessed else None
    for number in (1, 2, 3):
        budget(path, patients("a"), state=known).spend("r", number, ROUND)
    tamper(path)
    site_budget = budget(path, patients("a"), limit=1000, state=known)
    for spends in (ROUND, []):
        with pytest.raises(LedgerError, match=path.name) as refused:
            site_budget.spend("r", 4, spends)
        assert refused.value.code is ErrorCode.LEDGER


def remove_both(path: Path, copy: tuple[bytes, bytes]) -> None:
    del copy
    path.unlink()
    head_of(path).unlink()


def roll_back(path: Path, copy: tuple[bytes, bytes]) -> None:
    path.write_bytes(copy[0])
    head_of(path).write_bytes(copy[1])


def write_another(path: Path, copy: tuple[bytes, bytes]) -> None:
    """A whole new history, as long as the old one, that somebody else had."""
    remove_both(path, copy)
    for number in range(4):
        budget(path, patients("other")).spend("other", number, ROUND)


def roll_back_and_go_on(path: Path, copy: tuple[bytes, bytes]) -> None:
    """The rounds that were taken back are written anew, for other patients."""
    roll_back(path, copy)
    for number in range(4):
        budget(path, patients("other")).spend("other", number, ROUND)


REPLACING = [remove_both, roll_back, write_another, roll_back_and_go_on]


@pytest.mark.parametrize("note", [WITNESS_FILE, "audit.jsonl", None])
@pytest.mark.parametrize("replace", REPLACING)
def test_a_ledger_that_was_replaced_is_refused(
    path: Path, state: Path, replace: Callable[[Path, tuple[bytes, bytes]], None], note: str | None
) -> None:
    """File and head fit together; what the site remembers does not, and one of its two notes is enough."""
    budget(path, patients("a"), state=state).spend("r", 1, ROUND)
    copy = (path.read_bytes(), head_of(path).read_bytes())
    for number in (2, 3):
        budget(path, patients("a"), state=state).spend("r", number, ROUND)
    replace(path, copy)
    if note is not None:
        for file in (state / note, head_of(state / note)):
            file.unlink(missing_ok=True)
    with pytest.raises(LedgerError, match=str(path)) as refused:
        budget(path, patients("a"), state=state).spend("r", 4, ROUND)
    assert refused.value.code is ErrorCode.LEDGER


def test_a_ledger_that_is_replaced_while_the_site_runs_is_refused(path: Path, state: Path) -> None:
    site_budget = budget(path, patients("a"), state=state)
    site_budget.spend("r", 1, ROUND)
    copy = (path.read_bytes(), head_of(path).read_bytes())
    site_budget.spend("r", 2, ROUND)
    roll_back(path, copy)
    (state / WITNESS_FILE).unlink()
    with pytest.raises(LedgerError, match="older copy"):
        site_budget.spend("r", 3, ROUND)


def test_another_site_on_the_same_machine_may_go_on_with_the_ledger(path: Path, state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    budget(path, patients("a"), state=state).spend("r", 1, ROUND)
    budget(path, patients("a"), name="second", state=other).spend("r", 1, ROUND)
    budget(path, patients("a"), state=state).spend("r", 2, ROUND)


@pytest.mark.parametrize("text", ["", "{}", '{"n": 0, "hash": "", "path": ""}', "[]"])
def test_a_damaged_note_is_refused(path: Path, state: Path, text: str) -> None:
    budget(path, patients("a"), state=state).spend("r", 1, ROUND)
    (state / WITNESS_FILE).write_text(text)
    with pytest.raises(LedgerError, match=WITNESS_FILE):
        budget(path, patients("a"), state=state).spend("r", 2, ROUND)


def test_an_audit_log_that_cannot_be_written_stops_the_round(path: Path, state: Path) -> None:
    (state / "audit.jsonl").mkdir()
    with pytest.raises(LedgerError, match=r"audit\.jsonl"):
        budget(path, patients("a"), state=state).spend("r", 1, ROUND)


@pytest.mark.parametrize(
    ("event", "details"),
    [
        ("sent", {"bytes": 3}),
        ("round", {"federation": "a"}),
        ("dataset", {"dataset": "0" * 64, "patients": [["1" * 64]]}),
        ("dataset", {"dataset": "0" * 64, "patients": [[]]}),
    ],
)
def test_a_whole_chain_that_is_no_ledger_is_refused(path: Path, event: str, details: dict[str, object]) -> None:
    path.parent.mkdir()
    AuditLog(path).append(event, **details)
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path).read()


def test_a_round_of_patients_that_nobody_listed_is_refused(path: Path) -> None:
    budget(path, patients("a")).spend("r", 1, ROUND)
    details = read_entries(path)[-1].details
    spends = [line | {"dataset": "0" * 64} for line in details["spends"]]
    AuditLog(path).append("round", **(details | {"spends": spends}))
    with pytest.raises(LedgerError, match="is not in the ledger"):
        Ledger(path).read()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="--ledger"):
        budget(tmp_path / "file" / "ledger.jsonl", patients("a")).spend("r", 1, ROUND)


def test_nobody_else_may_read_it(path: Path) -> None:
    budget(path, patients("a")).spend("r", 1, ROUND)
    assert {file.stat().st_mode & 0o077 for file in (path, path.parent)} == {0}


def test_where_the_ledger_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDVOX_LEDGER", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_ledger() == tmp_path / ".local/share/fedvox/ledger.jsonl"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_ledger() == tmp_path / "share/fedvox/ledger.jsonl"
    monkeypatch.setenv("FEDVOX_LEDGER", str(tmp_path / "book.jsonl"))
    assert default_ledger() == tmp_path / "book.jsonl"


def test_the_file_says_what_was_spent(path: Path) -> None:
    budget(path, patients("a"), limit=8).spend("run", 1, ROUND)
    entry = json.loads(lines(path)[-1])
    assert (entry["federation"], entry["run"], entry["round"], entry["max_epsilon"]) == ("first", "run", 1, 8)
    training, validation = entry["spends"]
    assert training["mechanism"] == "Gaussian noise, Poisson sample"
    assert (training["noise_multiplier"], training["sample_rate"], training["steps"]) == (1.0, 0.1, 10)
    assert (validation["purpose"], validation["noise_multiplier"]) == ("validation", 5.0)
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None


def attempt_budget(path: Path, attempt: str, train: list[Patient], limit: float | None = None) -> LedgerBudget:
    people = {"training": train, "validation": patients("v")}
    return LedgerBudget(Ledger(path), federation(), people, site(limit), lambda: attempt)  # type: ignore[arg-type]


def test_an_attempt_that_is_taken_up_again_pays_once(path: Path) -> None:
    first = attempt_budget(path, "one", patients("a")).spend("run", 1, ROUND)
    again = attempt_budget(path, "one", patients("a")).spend("run", 1, ROUND)
    assert first == again == of(TRAINING)
    assert [item.entry.attempt for item in Ledger(path).read().rounds] == ["one"]
    assert budget(path, patients("a")).spend("run", 2, ()) == of(TRAINING)


@pytest.mark.parametrize(
    ("attempt", "who", "run", "number", "spends"),
    [
        ("two", "a", "run", 1, ROUND),
        ("", "a", "run", 1, ROUND),
        ("one", "b", "run", 1, ROUND),
        ("one", "a", "another", 1, ROUND),
        ("one", "a", "run", 2, ROUND),
        ("one", "a", "run", 1, (TRAINING,)),
        ("one", "a", "run", 1, (Spend("training", 1.0, 0.1, 11), VALIDATION)),
    ],
)
def test_what_an_attempt_has_paid_covers_exactly_that(
    path: Path, attempt: str, who: str, run: str, number: int, spends: tuple[Spend, ...]
) -> None:
    attempt_budget(path, "one", patients("a")).spend("run", 1, ROUND)
    attempt_budget(path, attempt, patients(who)).spend(run, number, spends)
    assert len(Ledger(path).read().rounds) == 2


def test_without_a_name_every_attempt_pays(path: Path) -> None:
    for _ in range(2):
        attempt_budget(path, "", patients("a")).spend("run", 1, ROUND)
    assert len(Ledger(path).read().rounds) == 2


def test_a_limit_that_was_lowered_refuses_an_attempt_that_was_paid_for(path: Path) -> None:
    attempt_budget(path, "one", patients("a")).spend("run", 1, ROUND)
    with pytest.raises(PolicyError) as error:
        attempt_budget(path, "one", patients("a"), limit=of(TRAINING) / 2).spend("run", 1, ROUND)
    assert error.value.code is ErrorCode.PRIVACY_BUDGET


def test_a_ledger_of_an_earlier_version_names_no_attempts(path: Path) -> None:
    """What it holds counts, and covers no attempt."""
    attempt_budget(path, "", patients("a")).spend("run", 1, ROUND)
    entries = [entry for entry in read_entries(path) if entry.event == "round"]
    earlier = path.with_name("earlier.jsonl")
    log = AuditLog(earlier)
    for entry in read_entries(path):
        log.append(entry.event, **{name: value for name, value in entry.details.items() if name != "attempt"})
    assert len(entries) == 1 and "attempt" not in read_entries(earlier)[-1].details
    assert attempt_budget(earlier, "one", patients("a")).spend("run", 1, ROUND) == of(TRAINING, TRAINING)
