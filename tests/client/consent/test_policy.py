"""What a hospital allows, task by task, and what it writes down before anything leaves."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context

import client.consent.guard
import client.consent.terms
from client.consent.decisions import DecisionBook, DecisionsError
from client.consent.disclosure import fields_that_leave
from client.consent.guard import HeldBackError, TaskGuard, open_guard
from client.consent.policy import NotAsApprovedError, Policy, PolicyError
from client.consent.site_config import SITE_FILE
from client.consent.terms import terms_of
from client.runner.app_call import ask
from client.runner.client_app import Site, SiteWeights, make_client_app
from client.state_folder import APPROVALS_FILE, AUDIT_FILE
from common.audit import Entry, read_entries, verify
from common.certificates import AUTHORITY_FILE
from common.config.federation import FederationConfig
from common.protocol.codec import Answer, Question, pack, unpack_answer
from common.protocol.manifest import manifest_of
from common.protocol.messages import ErrorCode, Failure, Hello, Result, SiteInfo, Task
from common.weights.store import MemoryStore
from server.provisioning.certificate_authority import Authority
from tests import kits, tiny

FEDERATION = tiny.federation(labels={1: "ball"}, channels=("t1",))
DIGEST = FEDERATION.digest()
AUTOMATIC = "limits: {automatic_approval: true, federations: [tiny], max_rounds: 3, max_local_steps: 40}\n"
MODEL, UPDATE = "a" * 64, "b" * 64
RESULT = Result("a", "run", 2, 5, 2, 4, 0.5, 0.25, {1: 0.5}, 3.0, 1.0, 1.0, 1.0, update=UPDATE)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def kit(state: Path) -> Path:
    return kits.write_kit(kit_of(state), FEDERATION, tiny.plan())


def kit_of(state: Path) -> Path:
    return state.with_name("kit")


def consent_of(state: Path) -> Path:
    """The hospital's key."""
    return state.with_name("hospital") / "consent.json"


def book_of(state: Path) -> DecisionBook:
    return DecisionBook(state, consent_of(state))


def agree(state: Path) -> None:
    kits.approve(kit_of(state), state, consent_of(state))


def policy_of(state: Path) -> Policy:
    return Policy(kit_of(state), state, consent_of(state))


def refusal(policy: Policy | TaskGuard, digest: str = DIGEST) -> ErrorCode | None:
    try:
        policy.check(digest)
    except PolicyError as error:
        return error.code
    return None


def reason(state: Path, digest: str = DIGEST) -> str:
    """Why a start or a task is refused until a person has looked."""
    with pytest.raises(NotAsApprovedError) as refused:
        policy_of(state).check(digest)
    return str(refused.value)


def test_nothing_is_done_before_a_person_approved(state: Path) -> None:
    policy = policy_of(state)
    assert refusal(policy) is ErrorCode.NOT_APPROVED
    agree(state)
    assert refusal(policy) is None


def test_only_the_approved_federation_is_done(state: Path, kit: Path) -> None:
    agree(state)
    other = tiny.federation(rounds=4, labels={1: "ball"}, channels=("t1",))
    policy = policy_of(state)
    assert refusal(policy, other.digest()) is ErrorCode.NOT_APPROVED
    assert refusal(policy, "") is ErrorCode.NOT_APPROVED
    # The coordinator put another federation file into the kit after the approval.
    kits.write_kit(kit, other, tiny.plan())
    assert refusal(policy_of(state), other.digest()) is ErrorCode.NOT_APPROVED
    assert refusal(policy, DIGEST) is ErrorCode.NOT_APPROVED, "also while the site runs"


def test_decisions_hold_from_the_next_task_on(state: Path) -> None:
    book, policy = book_of(state), policy_of(state)
    agree(state)
    book.pause("Dr. A")
    assert refusal(policy) is ErrorCode.PAUSED
    book.resume("Dr. A")
    assert refusal(policy) is None
    book.withdraw("Dr. A")
    assert refusal(policy) is ErrorCode.WITHDRAWN
    book.resume("Dr. A")
    assert refusal(policy) is ErrorCode.WITHDRAWN
    agree(state)
    assert refusal(policy) is None


def test_approving_does_not_end_a_pause(state: Path) -> None:
    book_of(state).pause()
    agree(state)
    assert refusal(policy_of(state)) is ErrorCode.PAUSED


def test_the_site_file_is_read_anew(state: Path) -> None:
    agree(state)
    file = state / SITE_FILE
    policy = policy_of(state)
    assert refusal(policy) is None
    file.write_text("paused: true\n")
    assert refusal(policy) is ErrorCode.PAUSED
    file.write_text("limits: {max_rounds: 2}\n")
    assert refusal(policy) is ErrorCode.OUTSIDE_LIMITS
    file.write_text("paused: tru\n")
    assert refusal(policy) is ErrorCode.REFUSED_BY_SITE
    file.write_text("limits: {max_rounds: 3}\n")
    assert refusal(policy) is None


def test_privacy_that_the_site_file_requires_is_asked_for_at_every_task(state: Path, kit: Path) -> None:
    agree(state)
    file = state / SITE_FILE
    policy = policy_of(state)
    file.write_text("privacy: {required: false}\n")
    assert refusal(policy) is None
    file.write_text(f"privacy: {{required: true}}\n{AUTOMATIC}")
    assert refusal(policy) is ErrorCode.PRIVACY_REQUIRED
    private = tiny.federation(labels={1: "ball"}, channels=("t1",), privacy={"epsilon": 8})
    kits.write_kit(kit, private, tiny.plan())
    assert refusal(policy_of(state), private.digest()) is None


def test_limits_approve_automatically_and_only_while_they_stand(state: Path) -> None:
    state.mkdir()
    file = state / SITE_FILE
    policy = policy_of(state)
    file.write_text(AUTOMATIC)
    for _ in range(3):
        assert refusal(policy) is None
    assert [entry.event for entry in read_entries(state / AUDIT_FILE)] == ["approved_automatically"]
    file.write_text(AUTOMATIC.replace("max_rounds: 3", "max_rounds: 2"))
    assert refusal(policy) is ErrorCode.OUTSIDE_LIMITS
    file.unlink()
    assert refusal(policy) is ErrorCode.NOT_APPROVED


def test_a_site_file_that_may_have_come_with_the_kit_approves_nothing(kit: Path, state: Path) -> None:
    for inside in (kit / "state", kit / "link"):
        if inside.name == "link":
            inside.symlink_to(state)
        inside.resolve().mkdir()
        (inside / SITE_FILE).write_text(AUTOMATIC)
        with pytest.raises(PolicyError, match="does not count inside the kit"):
            Policy(kit, inside, consent_of(state)).check(DIGEST)
    # The same file in a folder that the hospital chose.
    assert refusal(policy_of(state)) is None


def test_limits_do_not_undo_a_withdrawal(state: Path) -> None:
    state.mkdir()
    (state / SITE_FILE).write_text(AUTOMATIC)
    policy = policy_of(state)
    assert refusal(policy) is None
    book_of(state).withdraw()
    assert refusal(policy) is ErrorCode.WITHDRAWN


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "approvals": []}'])
def test_a_damaged_decision_file_approves_nothing(state: Path, content: str) -> None:
    state.mkdir()
    (state / APPROVALS_FILE).write_text(content)
    (state / SITE_FILE).write_text(AUTOMATIC)
    assert refusal(policy_of(state)) is ErrorCode.REFUSED_BY_SITE


def test_a_kit_that_brings_decisions_takes_part_nowhere(kit: Path, state: Path, tmp_path: Path) -> None:
    # Somebody approves it elsewhere, with a key of their own, and sends the kit with its state.
    brought = kit / "state"
    kits.approve(kit, brought, tmp_path / "coordinator" / "consent.json")
    with pytest.raises(NotAsApprovedError, match=r"approvals.json: does not count: .*consent.json: is missing"):
        Policy(kit, brought, consent_of(state)).check(DIGEST)
    agree(state)  # this hospital has a key
    with pytest.raises(NotAsApprovedError, match="was not written at this hospital"):
        Policy(kit, brought, consent_of(state)).check(DIGEST)
    with pytest.raises(DecisionsError, match="was not written at this hospital"):
        kits.approve(kit, brought, consent_of(state))


def test_one_changed_byte_of_the_decisions_breaks_the_seal(state: Path) -> None:
    agree(state)
    file = state / APPROVALS_FILE
    whole = file.read_text()
    for before, after in (("Dr. A", "Dr. B"), ('"automatic": false', '"automatic": true'), ('"north"', '"south"')):
        assert before in whole
        file.write_text(whole.replace(before, after))
        assert "its seal does not fit the key" in reason(state)
    file.write_text(whole)
    assert refusal(policy_of(state)) is None
    assert consent_of(state).stat().st_mode & 0o777 == 0o600


def test_without_the_key_nothing_counts_as_approved(state: Path) -> None:
    agree(state)
    key = consent_of(state).read_text()
    consent_of(state).unlink()
    assert "is missing" in reason(state)
    consent_of(state).write_text("{")
    assert "was changed or cut" in reason(state)
    consent_of(state).write_text(key)
    assert refusal(policy_of(state)) is None


@pytest.mark.parametrize("privacy", [None, {"epsilon": 8}])
def test_a_plan_that_was_changed_after_the_approval_is_refused(
    state: Path, kit: Path, privacy: dict[str, int] | None
) -> None:
    config = tiny.federation(labels={1: "ball"}, channels=("t1",), privacy=privacy)
    kits.write_kit(kit, config, tiny.plan())
    agree(state)
    running = policy_of(state)
    assert refusal(running, config.digest()) is None
    smaller = tiny.plan().model_copy(update={"patch_size": (8, 8, 8)})
    kits.write_kit(kit, config, smaller)
    assert "plan.json: not as approved by Dr. A" in reason(state, config.digest())
    assert refusal(running, config.digest()) is ErrorCode.NOT_APPROVED
    agree(state)
    assert refusal(policy_of(state), config.digest()) is None
    assert refusal(running, config.digest()) is ErrorCode.NOT_APPROVED, "it still has the old plan in memory"
    (kit / "plan.json").unlink()
    assert refusal(running, config.digest()) is ErrorCode.REFUSED_BY_SITE


def test_another_site_or_authority_is_refused(state: Path, kit: Path) -> None:
    write_authority(kit)
    agree(state)
    before = (kit / AUTHORITY_FILE).read_bytes()
    write_authority(kit)
    assert "ca.crt: not as approved" in reason(state)
    (kit / AUTHORITY_FILE).unlink()
    assert "ca.crt: not as approved" in reason(state)
    (kit / AUTHORITY_FILE).write_bytes(before)
    assert refusal(policy_of(state)) is None
    kits.write_kit(kit, FEDERATION, tiny.plan(), "south")
    assert "site in kit.yaml: not as approved" in reason(state)


def write_authority(kit: Path) -> None:
    (kit / AUTHORITY_FILE).write_bytes(Authority.create("tiny").pem)


APPROVED_LIMITS = """
limits: {max_rounds: 3, max_local_steps: 60, federations: [tiny], labels: [ball], channels: [t1]}
privacy: {required: true, max_epsilon: 8, delta: 1.0e-5}
patient_from_name: "(?P<patient>.*)_[0-9]+"
"""
WEAKER = [
    ("max_rounds: 3, ", "", "limits.max_rounds"),
    ("max_rounds: 3", "max_rounds: 4", "limits.max_rounds"),
    ("max_local_steps: 60, ", "", "limits.max_local_steps"),
    ("federations: [tiny], ", "", "limits.federations"),
    ("[ball]", "[ball, box]", "limits.labels"),
    (", channels: [t1]", "", "limits.channels"),
    ("max_epsilon: 8", "max_epsilon: 9", "privacy.max_epsilon"),
    ("max_epsilon: 8, ", "", "privacy.max_epsilon"),
    ("delta: 1.0e-5", "delta: 1.0e-4", "privacy.delta"),
    ("required: true", "required: false", "privacy.required"),
    ("required: true", "required: true, share_personal_score: true", "privacy.share_personal_score"),
    ('patient_from_name: "(?P<patient>.*)_[0-9]+"', "", "patient_from_name"),
    ("_[0-9]+", "_x[0-9]+", "patient_from_name"),
]


@pytest.fixture
def private(state: Path, kit: Path) -> FederationConfig:
    """A federation that was approved under limits."""
    config = tiny.federation(labels={1: "ball"}, channels=("t1",), privacy={"epsilon": 8})
    kits.write_kit(kit, config, tiny.plan())
    state.mkdir()
    (state / SITE_FILE).write_text(APPROVED_LIMITS)
    agree(state)
    assert refusal(policy_of(state), config.digest()) is None
    return config


@pytest.mark.parametrize(("before", "after", "key"), WEAKER)
def test_weaker_limits_want_a_new_approval(
    state: Path, private: FederationConfig, before: str, after: str, key: str
) -> None:
    assert before in APPROVED_LIMITS
    (state / SITE_FILE).write_text(APPROVED_LIMITS.replace(before, after))
    assert f"{state / SITE_FILE}: {key}: weaker than when approved by Dr. A" in reason(state, private.digest())
    agree(state)
    assert refusal(policy_of(state), private.digest()) is None


def test_a_site_file_that_vanished_is_noticed(state: Path, private: FederationConfig) -> None:
    (state / SITE_FILE).unlink()
    assert "limits.max_rounds, " in reason(state, private.digest())


def test_stricter_limits_want_no_new_approval(state: Path, private: FederationConfig) -> None:
    stricter = APPROVED_LIMITS.replace("local_steps: 60", "local_steps: 50").replace("epsilon: 8", "epsilon: 2")
    (state / SITE_FILE).write_text(stricter.replace("1.0e-5", "1.0e-6"))
    assert refusal(policy_of(state), private.digest()) is None


def test_an_approval_whose_log_is_gone_does_not_hold(state: Path) -> None:
    agree(state)
    for name in (AUDIT_FILE, f"{AUDIT_FILE}.head"):
        (state / name).unlink()
    assert f"{state / AUDIT_FILE}: lacks the approval" in reason(state)
    agree(state)
    assert refusal(policy_of(state)) is None


def test_older_decisions_do_not_undo_a_withdrawal(state: Path) -> None:
    agree(state)
    older = (state / APPROVALS_FILE).read_bytes()
    running = policy_of(state)
    book_of(state).withdraw()
    (state / APPROVALS_FILE).write_bytes(older)
    assert "is older than the withdrawal" in reason(state)
    assert refusal(running) is ErrorCode.WITHDRAWN
    agree(state)
    assert refusal(running) is None


def test_an_approval_does_not_cover_a_version_that_sends_more(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(client.consent.terms, "digest_of_fields", lambda: "0" * 64)
        agree(state)
        assert refusal(policy_of(state)) is None
    assert refusal(policy_of(state)) is ErrorCode.NOT_APPROVED


def test_an_approval_that_cannot_be_written_down_does_not_hold(state: Path) -> None:
    (state / AUDIT_FILE).mkdir(parents=True)
    (state / SITE_FILE).write_text(AUTOMATIC)
    assert refusal(policy_of(state)) is ErrorCode.REFUSED_BY_SITE
    assert not (state / APPROVALS_FILE).exists()


def test_stopping_works_without_a_log(state: Path) -> None:
    agree(state)
    (state / AUDIT_FILE).write_text("broken\n")
    with pytest.raises(Exception, match="not an entry"):
        book_of(state).withdraw()
    assert refusal(policy_of(state)) is ErrorCode.WITHDRAWN


def task(round_number: int = 2, train: bool = True) -> Task:
    return Task("run", DIGEST, round_number, 3, train, MODEL)


def sent(state: Path) -> list[Entry]:
    return [entry for entry in read_entries(state / AUDIT_FILE) if entry.event == "sent"]


@pytest.fixture
def guard(state: Path) -> TaskGuard:
    agree(state)
    return open_guard(kit_of(state), state, consent_of(state))


def test_tasks_are_written_down_either_way(state: Path, guard: TaskGuard) -> None:
    assert refusal(guard) is None
    assert refusal(guard, "f" * 10_000) is ErrorCode.NOT_APPROVED
    book_of(state).pause()
    assert refusal(guard) is ErrorCode.PAUSED
    entries = [entry for entry in read_entries(state / AUDIT_FILE) if entry.event.startswith("task")]
    assert [(entry.event, entry.details.get("code")) for entry in entries] == [
        ("task_accepted", None),
        ("task_refused", "not-approved"),
        ("task_refused", "paused"),
    ]
    assert len(entries[1].details["digest"]) == 200


def begun(guard: TaskGuard, run: str, round_number: int, train: bool = True) -> ErrorCode | None:
    try:
        guard.begin(Task(run, DIGEST, round_number, 3, train, MODEL))
    except PolicyError as error:
        return error.code
    return None


def test_a_server_that_repeats_rounds_under_new_names_gets_no_more_than_was_approved(
    state: Path, guard: TaskGuard
) -> None:
    assert [begun(guard, f"run-{number}", 1) for number in range(5)] == [None] * 3 + [ErrorCode.APPROVAL_USED_UP] * 2
    assert begun(guard, "another", 4, train=False) is None
    assert begun(guard, "another", 4, train=False) is ErrorCode.APPROVAL_USED_UP
    events = [entry.event for entry in read_entries(state / AUDIT_FILE)]
    assert events.count("task_counted") == 4 and events.count("task_refused") == 3


def test_neither_a_new_state_folder_nor_a_new_approval_starts_the_count_again(state: Path, guard: TaskGuard) -> None:
    for number in range(3):
        assert begun(guard, "run", number) is None
    shutil.rmtree(state)
    agree(state)
    again = open_guard(kit_of(state), state, consent_of(state))
    assert refusal(again) is None
    assert begun(again, "run", 1) is ErrorCode.APPROVAL_USED_UP
    contract = book_of(state).allow_more(terms_of(kit_of(state)), 1, "Dr. B")
    assert contract.summary(3) == "3 of 4 trainings used, 1 of them allowed later"
    assert [begun(again, "run", number) for number in (1, 2)] == [None, ErrorCode.APPROVAL_USED_UP]
    [allowed] = [entry for entry in read_entries(state / AUDIT_FILE) if entry.event == "more_rounds_allowed"]
    assert (allowed.details["user"], allowed.details["rounds"]) == ("Dr. B", 1)


def test_an_older_copy_of_the_count_forgets_nothing_that_the_log_has(state: Path, guard: TaskGuard) -> None:
    older = consent_of(state).read_bytes()
    guard.begin(Task("run", DIGEST, 1, 3, True, MODEL))()  # failed, and is given back in the log too
    for number in range(2):
        assert begun(guard, "run", number) is None
    consent_of(state).write_bytes(older)
    again = open_guard(kit_of(state), state, consent_of(state))
    assert [begun(again, "run", number) for number in range(2)] == [None, ErrorCode.APPROVAL_USED_UP]


def test_a_count_that_cannot_be_logged_is_given_back(state: Path, guard: TaskGuard) -> None:
    whole = (state / AUDIT_FILE).read_bytes()
    (state / AUDIT_FILE).write_text("broken\n")
    assert begun(guard, "run", 1) is ErrorCode.REFUSED_BY_SITE
    (state / AUDIT_FILE).write_bytes(whole)
    assert [begun(guard, "run", number) for number in range(4)] == [None] * 3 + [ErrorCode.APPROVAL_USED_UP]


def test_what_leaves_is_written_down_exactly(state: Path, guard: TaskGuard) -> None:
    answers: list[tuple[str, Question, Answer, int]] = [
        ("hello", Hello("run", DIGEST), SiteInfo("a", 5, 2, "1", "2", "3", "4", "cpu", "f"), 0),
        ("train", task(), RESULT, 400),
        ("evaluate", task(4, train=False), replace(RESULT, epsilon=1.5, update=None, round=4), 0),
    ]
    for kind, asked, answer, size in answers:
        guard.record(kind, pack(asked), pack(answer), size)
    entries = sent(state)
    assert [entry.details["kind"] for entry in entries] == [kind for kind, *_ in answers]
    assert [entry.details.get("round") for entry in entries] == [None, 2, 4]
    assert {entry.details["run"] for entry in entries} == {"run"}
    for entry, (_, _, answer, size) in zip(entries, answers, strict=True):
        manifest = manifest_of(pack(answer), size)
        assert {key: entry.details[key] for key in manifest} == manifest
    assert [entry.details["epsilon"] for entry in entries] == [None, None, 1.5]
    assert (entries[1].details["update"], entries[1].details["update_bytes"]) == (UPDATE, 400)
    verify(state / AUDIT_FILE)


def test_a_hospital_is_told_that_it_declares_other_numbers_of_patients_than_before(guard: TaskGuard) -> None:
    """Until the server asks for a result all the same: a person has released the site by then."""
    first = SiteInfo("a", 5, 2, "1", "2", "3", "4", "cpu", "f")
    other = replace(first, train_examples=6, validation_examples=1)
    assert guard.changed_patients("run", other) is None
    for info in (first, other):
        guard.record("hello", pack(Hello("run", DIGEST)), pack(info))
    assert guard.changed_patients("run", first) is guard.changed_patients("another", other) is None
    told = guard.changed_patients("run", other)
    assert told is not None and "6 training and 1 validation patients, and earlier in this run 5 and 2" in told
    guard.record("train", pack(task()), pack(replace(RESULT, examples=6, validation_examples=1)), 400)
    assert guard.changed_patients("run", other) is None
    assert guard.changed_patients("run", first) is not None


def test_failures_are_written_down_as_well(state: Path, guard: TaskGuard) -> None:
    guard.record("train", pack(task()), pack(Failure(ErrorCode.OUT_OF_MEMORY, "MemoryError")))
    [entry] = sent(state)
    found = [entry.details[name] for name in ("error", "reason", "round", "bytes")]
    assert found == ["out-of-memory", "MemoryError", 2, 0]


def test_what_was_no_question_may_be_answered_with_a_failure(state: Path, guard: TaskGuard) -> None:
    guard.record("unknown", "{", pack(Failure(ErrorCode.BAD_TASK, "ProtocolError")))
    assert "run" not in sent(state)[0].details


def _with(**values: object) -> str:
    return json.dumps(json.loads(pack(RESULT)) | values)


UNLISTED: dict[str, str] = {
    "another field": _with(patient="Smith"),
    "a field less": json.dumps({key: value for key, value in json.loads(pack(RESULT)).items() if key != "steps"}),
    "a long text": _with(run="x" * 201),
    "a text in place of a number": _with(steps="many"),
    "a list in place of a text": _with(site=["a", "b"]),
    "scores of many labels": _with(dice={str(label): 0.5 for label in range(257)}),
    "a score of no label": _with(dice={"Smith": 0.5}),
    "a path in place of a digest": _with(update="/data/Smith.nii.gz"),
    "a failure with a text": '{"format":5,"kind":"failure","code":1000,"reason":"/data/Smith_1963.nii.gz"}',
    "a failure with a long name": pack(Failure(ErrorCode.INTERNAL, "x" * 101)),
    "a question": pack(Hello("run", DIGEST)),
    "no message at all": "Smith",
}


@pytest.mark.parametrize("name", UNLISTED)
def test_what_is_on_no_list_does_not_leave(state: Path, guard: TaskGuard, name: str) -> None:
    with pytest.raises(HeldBackError, match="on no list") as error:
        guard.record("train", pack(task()), UNLISTED[name], 400)
    assert error.value.code is ErrorCode.REFUSED_BY_SITE
    assert sent(state) == []
    assert read_entries(state / AUDIT_FILE)[-1].event == "held_back"


def test_a_field_that_the_consent_document_does_not_show_does_not_leave(
    state: Path, guard: TaskGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [field for field in fields_that_leave() if field.name != "seconds"]
    monkeypatch.setattr(client.consent.guard, "fields_that_leave", lambda: shown)
    with pytest.raises(HeldBackError, match="on no list: seconds"):
        guard.record("train", pack(task()), pack(RESULT), 400)


def test_the_score_of_a_personal_model_leaves_only_if_the_site_file_says_so(state: Path, guard: TaskGuard) -> None:
    answer = pack(replace(RESULT, personal_dice={1: 0.5}))
    with pytest.raises(HeldBackError, match="share_personal_score in the site file is not true"):
        guard.record("train", pack(task()), answer, 400)
    assert not guard.shares_personal_score() and sent(state) == []
    assert read_entries(state / AUDIT_FILE)[-1].event == "held_back"
    (state / SITE_FILE).write_text("privacy: {share_personal_score: true}\n")
    guard.record("train", pack(task()), answer, 400)
    assert guard.shares_personal_score()
    assert sent(state)[-1].details["fields"]["personal_dice"] == {"1": 0.5}


@pytest.mark.parametrize(("update", "size"), [(UPDATE, 0), (None, 400)])
def test_an_update_and_its_digest_leave_together(state: Path, guard: TaskGuard, update: str | None, size: int) -> None:
    with pytest.raises(HeldBackError, match="does not match its update"):
        guard.record("train", pack(task()), pack(replace(RESULT, update=update)), size)
    assert sent(state) == []


def _never(context: Context) -> Site:
    raise AssertionError("the site was opened")


def _run(guard: TaskGuard, open_site: Callable[[Context], Site]) -> Answer:
    store = MemoryStore()
    app = make_client_app(open_site, SiteWeights(store, store), guard)
    hello = Hello("run", DIGEST)
    return unpack_answer(ask(app, "0" * 32, hello, pack(hello)))


def test_the_client_app_asks_first(state: Path, guard: TaskGuard) -> None:
    site = tiny.site("a", 1, DIGEST)
    assert isinstance(_run(guard, lambda context: site), SiteInfo)
    book_of(state).withdraw()
    assert _run(guard, _never) == Failure(ErrorCode.WITHDRAWN, "PolicyError")


def test_without_a_log_no_work_is_done_and_nothing_leaves(state: Path, guard: TaskGuard) -> None:
    (state / AUDIT_FILE).write_text("broken\n")
    assert _run(guard, _never) == Failure(ErrorCode.REFUSED_BY_SITE, "PolicyError")
    with pytest.raises(PolicyError, match="not an entry") as error:
        guard.record("train", pack(task()), pack(RESULT), 400)
    assert not isinstance(error.value, HeldBackError), "once the log is whole again it may leave"


def test_numbers_that_do_not_exist_are_written_as_none(state: Path, guard: TaskGuard) -> None:
    guard.record("train", pack(task()), pack(replace(RESULT, dice={1: math.nan})), 400)
    fields = sent(state)[-1].details["fields"]
    assert (fields["dice"], fields["epsilon"]) == ({"1": None}, None)
