"""What a hospital allows, task by task, and what it writes down before anything leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.approvals
from client.app import make_client_app
from client.approvals import APPROVALS_FILE, AUDIT_FILE, DecisionBook
from client.policy import Policy, PolicyError, TaskGuard, open_guard
from common.audit import Entry, read_entries, verify
from common.manifest import manifest_of
from common.messages import ErrorCode, Progress, Result, SiteInfo, Task
from common.protocol import pack_hello, pack_info, pack_progress, pack_result, pack_task, pack_wait
from common.site_config import SITE_FILE, Limits, SiteConfig
from tests import tiny

FEDERATION = tiny.federation(labels={1: "ball"}, channels=("t1",))
DIGEST = FEDERATION.digest()
AUTOMATIC = "limits: {automatic_approval: true, federations: [tiny], max_rounds: 3, max_local_steps: 40}\n"
RESULT = Result("a", "run", 2, 5, 2, 4, 0.5, 0.25, {1: 0.5}, 3.0, 1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes no message outside of a task."""
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def refusal(policy: Policy | TaskGuard, digest: str = DIGEST) -> ErrorCode | None:
    try:
        policy.check(digest)
    except PolicyError as error:
        return error.code
    return None


def test_nothing_is_done_before_a_person_approved(state: Path) -> None:
    policy = Policy(state, FEDERATION, SiteConfig())
    assert refusal(policy) is ErrorCode.NOT_APPROVED
    DecisionBook(state).approve("tiny", DIGEST, "Dr. A")
    assert refusal(policy) is None


def test_only_the_approved_federation_is_done(state: Path) -> None:
    DecisionBook(state).approve("tiny", DIGEST)
    other = tiny.federation(rounds=4, labels={1: "ball"}, channels=("t1",))
    assert refusal(Policy(state, FEDERATION, SiteConfig()), other.digest()) is ErrorCode.NOT_APPROVED
    assert refusal(Policy(state, FEDERATION, SiteConfig()), "") is ErrorCode.NOT_APPROVED
    # The coordinator put another federation file into the kit after the approval.
    assert refusal(Policy(state, other, SiteConfig()), other.digest()) is ErrorCode.NOT_APPROVED


def test_decisions_hold_from_the_next_task_on(state: Path) -> None:
    book, policy = DecisionBook(state), Policy(state, FEDERATION, SiteConfig())
    book.approve("tiny", DIGEST)
    book.pause("Dr. A")
    assert refusal(policy) is ErrorCode.PAUSED
    book.resume("Dr. A")
    assert refusal(policy) is None
    book.withdraw("Dr. A")
    assert refusal(policy) is ErrorCode.WITHDRAWN
    book.resume("Dr. A")
    assert refusal(policy) is ErrorCode.WITHDRAWN
    book.approve("tiny", DIGEST)
    assert refusal(policy) is None


def test_approving_does_not_end_a_pause(state: Path) -> None:
    book = DecisionBook(state)
    book.pause()
    book.approve("tiny", DIGEST)
    assert refusal(Policy(state, FEDERATION, SiteConfig())) is ErrorCode.PAUSED


def test_the_site_file_is_read_anew(state: Path) -> None:
    DecisionBook(state).approve("tiny", DIGEST)
    file = state / SITE_FILE
    policy = Policy(state, FEDERATION, file)
    assert refusal(policy) is None
    file.write_text("paused: true\n")
    assert refusal(policy) is ErrorCode.PAUSED
    file.write_text("limits: {max_rounds: 2}\n")
    assert refusal(policy) is ErrorCode.OUTSIDE_LIMITS
    file.write_text("paused: tru\n")
    assert refusal(policy) is ErrorCode.REFUSED_BY_SITE
    file.write_text("limits: {max_rounds: 3}\n")
    assert refusal(policy) is None


def test_privacy_that_the_site_file_requires_is_asked_for_at_every_task(state: Path) -> None:
    DecisionBook(state).approve("tiny", DIGEST)
    file = state / SITE_FILE
    policy = Policy(state, FEDERATION, file)
    file.write_text("privacy: {required: false}\n")
    assert refusal(policy) is None
    file.write_text(f"privacy: {{required: true}}\n{AUTOMATIC}")
    assert refusal(policy) is ErrorCode.PRIVACY_REQUIRED
    private = tiny.federation(labels={1: "ball"}, channels=("t1",), privacy={"epsilon": 8})
    assert refusal(Policy(state, private, file), private.digest()) is None


def test_limits_approve_automatically_and_only_while_they_stand(state: Path) -> None:
    state.mkdir()
    file = state / SITE_FILE
    policy = Policy(state, FEDERATION, file)
    file.write_text(AUTOMATIC)
    for _ in range(3):
        assert refusal(policy) is None
    assert [entry.event for entry in read_entries(state / AUDIT_FILE)] == ["approved_automatically"]
    file.write_text(AUTOMATIC.replace("max_rounds: 3", "max_rounds: 2"))
    assert refusal(policy) is ErrorCode.OUTSIDE_LIMITS
    file.unlink()
    assert refusal(policy) is ErrorCode.NOT_APPROVED


def test_limits_do_not_undo_a_withdrawal(state: Path) -> None:
    limits = Limits(automatic_approval=True, federations=("tiny",), max_rounds=3, max_local_steps=40)
    policy = Policy(state, FEDERATION, SiteConfig(limits=limits))
    assert refusal(policy) is None
    DecisionBook(state).withdraw()
    assert refusal(policy) is ErrorCode.WITHDRAWN


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1, "approved": true}'])
def test_a_damaged_decision_file_approves_nothing(state: Path, content: str) -> None:
    state.mkdir()
    (state / APPROVALS_FILE).write_text(content)
    (state / SITE_FILE).write_text(AUTOMATIC)
    assert refusal(Policy(state, FEDERATION, state / SITE_FILE)) is ErrorCode.REFUSED_BY_SITE


def test_an_approval_does_not_cover_a_version_that_sends_more(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(client.approvals, "digest_of_fields", lambda: "0" * 64)
        DecisionBook(state).approve("tiny", DIGEST)
        assert refusal(Policy(state, FEDERATION, SiteConfig())) is None
    assert refusal(Policy(state, FEDERATION, SiteConfig())) is ErrorCode.NOT_APPROVED


def test_an_approval_that_cannot_be_written_down_does_not_hold(state: Path) -> None:
    (state / AUDIT_FILE).mkdir(parents=True)
    (state / SITE_FILE).write_text(AUTOMATIC)
    assert refusal(Policy(state, FEDERATION, state / SITE_FILE)) is ErrorCode.REFUSED_BY_SITE
    assert not (state / APPROVALS_FILE).exists()


def test_stopping_works_without_a_log(state: Path) -> None:
    book = DecisionBook(state)
    book.approve("tiny", DIGEST)
    (state / AUDIT_FILE).write_text("broken\n")
    with pytest.raises(Exception, match="not an entry"):
        book.withdraw()
    assert refusal(Policy(state, FEDERATION, SiteConfig())) is ErrorCode.WITHDRAWN


def message(content: RecordDict) -> Message:
    return Message(content, 1, "train")


def task(round_number: int = 2) -> Message:
    return message(pack_task(Task("run", DIGEST, round_number, 3, True), np.zeros(4, np.float32)))


def sent(state: Path) -> list[Entry]:
    return [entry for entry in read_entries(state / AUDIT_FILE) if entry.event == "sent"]


@pytest.fixture
def guard(state: Path) -> TaskGuard:
    DecisionBook(state).approve("tiny", DIGEST)
    return open_guard(state, FEDERATION)


def test_tasks_are_written_down_either_way(state: Path, guard: TaskGuard) -> None:
    assert refusal(guard) is None
    assert refusal(guard, "f" * 10_000) is ErrorCode.NOT_APPROVED
    DecisionBook(state).pause()
    assert refusal(guard) is ErrorCode.PAUSED
    entries = [entry for entry in read_entries(state / AUDIT_FILE) if entry.event.startswith("task")]
    assert [(entry.event, entry.details.get("code")) for entry in entries] == [
        ("task_accepted", None),
        ("task_refused", "not-approved"),
        ("task_refused", "paused"),
    ]
    assert len(entries[1].details["digest"]) == 200


def test_what_leaves_is_written_down_exactly(state: Path, guard: TaskGuard) -> None:
    update = np.linspace(-1, 1, 100, dtype=np.float32)
    replies = [
        ("hello", message(pack_hello("run", DIGEST)), pack_info(SiteInfo("a", 5, 2, "1", "2", "3", "4", "cpu", "f"))),
        ("train", task(), pack_result(RESULT, update)),
        ("train", task(), pack_result(RESULT, update, "int8")),
        ("evaluate", task(4), pack_result(Result(**(vars(RESULT) | {"epsilon": 1.5})), None)),
        ("progress", message(pack_wait("run", 2)), pack_progress(Progress("run", 2, 3, 40))),
    ]
    for kind, asked, content in replies:
        guard.record(kind, asked, Message(content, reply_to=asked))
    entries = sent(state)
    assert [entry.details["kind"] for entry in entries] == [kind for kind, _, _ in replies]
    assert [entry.details.get("round") for entry in entries] == [None, 2, 2, 4, 2]
    assert {entry.details["run"] for entry in entries} == {"run"}
    for entry, (_, _, content) in zip(entries, replies, strict=True):
        manifest = manifest_of(content)
        assert {key: entry.details[key] for key in manifest} == manifest
    assert [entry.details["epsilon"] for entry in entries] == [None, None, None, 1.5, None]
    verify(state / AUDIT_FILE)


def test_errors_are_written_down_as_well(state: Path, guard: TaskGuard) -> None:
    for code in (ErrorCode.OUT_OF_MEMORY, 8):
        guard.record("train", task(), Message(Error(code=code, reason="MemoryError"), reply_to=task()))
    details = [entry.details for entry in sent(state)]
    assert [(item["error"], item["reason"], item["round"]) for item in details] == [
        ("out-of-memory", "MemoryError", 2),
        ("flower-error-8", "MemoryError", 2),
    ]


def _with(name: str, record: ConfigRecord | MetricRecord | ArrayRecord) -> RecordDict:
    records = pack_result(RESULT, np.zeros(4, np.float32))
    if name in records and not isinstance(record, ArrayRecord):
        records[name].update(record)  # type: ignore[arg-type]
    else:
        records[name] = record
    return records


SCAN = ArrayRecord({"scan": Array(np.zeros((4, 4), np.float32))})
UNLISTED: dict[str, Callable[[], RecordDict]] = {
    "another record": lambda: _with("log", ConfigRecord({"text": "a"})),
    "another field": lambda: _with("identity", ConfigRecord({"patient": "Smith"})),
    "another number": lambda: _with("numbers", MetricRecord({"age": 63})),
    "a long text": lambda: _with("identity", ConfigRecord({"run": "x" * 201})),
    "bytes": lambda: _with("identity", ConfigRecord({"run": b"x"})),
    "a list of texts": lambda: _with("identity", ConfigRecord({"site": ["a", "b"]})),
    "a list of many numbers": lambda: _with("numbers", MetricRecord({"dice_values": [0.5] * 257})),
    "another tensor": lambda: _with("scan", SCAN),
    "a named tensor in the update": lambda: _with("update", SCAN),
    "a tensor in place of numbers": lambda: _with("numbers", ArrayRecord({"steps": Array(np.zeros(4))})),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_what_is_on_no_list_does_not_leave(state: Path, guard: TaskGuard, name: str) -> None:
    with pytest.raises(PolicyError, match="on no list") as error:
        guard.record("train", task(), Message(UNLISTED[name](), reply_to=task()))
    assert error.value.code is ErrorCode.REFUSED_BY_SITE
    assert sent(state) == []
    assert read_entries(state / AUDIT_FILE)[-1].event == "held_back"


@pytest.mark.parametrize("reason", ["/data/Smith_1963.nii.gz", "two words", "x" * 201, ""])
def test_an_error_with_a_text_does_not_leave(state: Path, guard: TaskGuard, reason: str) -> None:
    with pytest.raises(PolicyError, match="free text"):
        guard.record("train", task(), Message(Error(code=1000, reason=reason), reply_to=task()))
    assert sent(state) == []


def _never(context: Context) -> object:
    raise AssertionError("the site was opened")


def _run(guard: TaskGuard, open_site: Callable[[Context], object], asked: Message) -> Message:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return make_client_app(open_site, guard)(asked, context)  # type: ignore[arg-type]


def _hello() -> Message:
    return Message(pack_hello("run", DIGEST), 1, "query.hello")


def test_the_client_app_asks_first_and_records_last(state: Path, guard: TaskGuard) -> None:
    site = tiny.site("a", 1, DIGEST)
    reply = _run(guard, lambda context: site, _hello())
    assert not reply.has_error()
    assert sent(state)[-1].details["sha256"] == manifest_of(reply.content)["sha256"]
    DecisionBook(state).withdraw()
    refused = _run(guard, _never, _hello())
    assert (refused.error.code, refused.error.reason) == (ErrorCode.WITHDRAWN, "PolicyError")
    assert sent(state)[-1].details["error"] == "withdrawn"


def test_without_a_log_no_work_is_done_and_nothing_leaves(state: Path, guard: TaskGuard) -> None:
    (state / AUDIT_FILE).write_text("broken\n")
    assert _run(guard, _never, _hello()).error.code == ErrorCode.REFUSED_BY_SITE


def test_a_log_that_breaks_during_the_work_holds_the_reply_back(state: Path, guard: TaskGuard) -> None:
    site = tiny.site("a", 1, DIGEST)

    def open_site(context: Context) -> object:
        (state / AUDIT_FILE).write_text("broken\n")
        return site

    assert _run(guard, open_site, _hello()).error.code == ErrorCode.REFUSED_BY_SITE


def test_numbers_that_do_not_exist_are_written_as_none(state: Path, guard: TaskGuard) -> None:
    reply = Message(pack_result(Result(**(vars(RESULT) | {"dice": {1: math.nan}})), None), reply_to=task())
    guard.record("evaluate", task(), reply)
    numbers = sent(state)[-1].details["fields"]["numbers"]
    assert (numbers["dice_values"], numbers["epsilon"]) == ([None], None)
