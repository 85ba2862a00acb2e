"""The courier between a real SuperLink and a runner's folder: questions in, answers out."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.shared_folder import put_file, reply_content
from common.audit import verify
from common.protocol.codec import from_record, pack
from common.protocol.messages import ErrorCode, Hello
from tests.client.courier.kits import Kits
from tests.client.courier.site import REPOSITORY, StandInSite, failure, info, result, site, task
from tests.client.courier.stand_in import StandIn, stand_in, wait_for
from tests.client.courier.superlink import SuperLink

_random = random.Random(2)


def some() -> bytes:
    """Weights that no other test has."""
    return _random.randbytes(300_000)


@pytest.fixture(scope="module")
def only_gateway(kits: Kits, link: SuperLink) -> Iterator[StandIn]:
    with stand_in(kits, link.port) as gateway:
        yield gateway


@pytest.fixture
def gateway(only_gateway: StandIn) -> Iterator[StandIn]:
    yield only_gateway
    only_gateway.reset()


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory, only_gateway: StandIn, link: SuperLink) -> Iterator[StandInSite]:
    """One courier for all tests that do not end it: it starts in a second, or in four on a machine that is busy."""
    with site(tmp_path_factory.mktemp("north"), only_gateway, link) as north:
        yield north


def confirmed(gateway: StandIn) -> int:
    return len(gateway.asked("POST", ".*confirm.*"))


def test_a_round(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    model, update = some(), some()
    question = task(gateway.publish(model))
    identity = north.ask(question, len(update))
    assert north.wait_task(question.name) == pack(question).encode()
    assert (north.shared.inbox / question.model).read_bytes() == model
    north.wait(lambda: gateway.beats and gateway.beats[-1].tasks == (question.name,), "a heartbeat with the task")
    text = north.answer(question.name, result(question, update), update)
    north.wait_over(question.name)
    assert from_record(link.reply(identity).content) == text
    digest = hashlib.sha256(update).hexdigest()
    assert gateway.updates[digest] == update
    assert not (north.shared.inbox / question.model).exists()
    assert (north.shared.outbox / digest).exists()  # the runner's
    north.wait(lambda: gateway.beats[-1].tasks == (), "a heartbeat without the task")
    sending, delivered = north.audit(question.name)
    assert [sending["event"], delivered["event"]] == ["sending", "delivered"]
    assert (sending["update"], sending["update_bytes"]) == (digest, len(update))
    assert sending["reply_sha256"] == delivered["reply_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert verify(north.state / "courier-audit.jsonl").entries >= 2


def test_a_hello_needs_no_weights(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    question = Hello("a-run", "0" * 64)
    identity = north.ask(question)
    name = identity[:32]
    assert north.wait_task(name) == pack(question).encode()
    text = north.answer(name, info())
    north.wait_over(name)
    assert from_record(link.reply(identity).content) == text


def test_a_failure_is_an_error_of_flowers(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    question = task(gateway.publish(some()))
    identity = north.ask(question, 1)
    north.wait_task(question.name)
    north.answer(question.name, failure())
    north.wait_over(question.name)
    reply = link.reply(identity)
    assert (reply.error.code, reply.error.reason) == (ErrorCode.PAUSED, "PausedError")
    assert not gateway.asked("PATCH", ".*")


def test_what_cannot_be_read_is_answered_by_the_courier(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    identity = north.ask('{"format": 99}')
    north.wait(lambda: len(north.audit(identity[:32])) == 2, "the answer")
    north.wait_over(identity[:32])
    reply = link.reply(identity)
    assert (reply.error.code, reply.error.reason) == (ErrorCode.BAD_TASK, "ProtocolError")
    assert north.audit(identity[:32])[0]["kind"] == "failure BAD_TASK ProtocolError"
    assert not list(north.shared.inbox.glob("*.task"))


def test_a_task_that_comes_twice_is_answered_by_its_newest_message(
    north: StandInSite, gateway: StandIn, link: SuperLink
) -> None:
    update = some()
    question = task(gateway.publish(some()))
    north.ask(question, len(update))
    north.wait_task(question.name)
    newest = north.ask(question)
    north.wait(lambda: confirmed(gateway) == 2, "the second message")
    text = north.answer(question.name, result(question, update), update)
    north.wait_over(question.name)
    assert from_record(link.reply(newest).content) == text
    assert len(gateway.asked("GET", "/models/.*")) == 1


def test_a_reply_that_was_announced_is_announced_for_a_newer_message_too(
    north: StandInSite, gateway: StandIn, link: SuperLink
) -> None:
    update = some()
    question = task(gateway.publish(some()))
    first = north.ask(question, len(update))
    north.wait_task(question.name)
    held = gateway.add("POST", ".*push-object", hold=threading.Event())
    text = north.answer(question.name, result(question, update), update)
    north.wait(lambda: held.seen, "an announcement by half")
    second = north.ask(question)
    north.wait(lambda: confirmed(gateway) == 2, "the second message")
    assert held.hold is not None
    held.hold.set()
    north.wait_over(question.name)
    assert from_record(link.reply(first).content) == from_record(link.reply(second).content) == text
    assert len(gateway.asked("PATCH", ".*")) == 1


def test_one_stuck_task_does_not_hold_up_another(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    update = some()
    stuck, other = task(gateway.publish(some())), task(gateway.publish(some()))
    held = gateway.add("GET", f"/models/{stuck.model}", hold=threading.Event())
    north.ask(stuck, len(update))
    north.wait(lambda: held.seen, "the first task")
    identity = north.ask(other, len(update))
    north.wait_task(other.name)
    north.answer(other.name, result(other, update), update)
    north.wait_over(other.name)
    assert link.reply(identity).has_content()
    assert north.held() == [stuck.name]
    count = len(gateway.beats)
    north.wait(lambda: len(gateway.beats) > count, "a heartbeat")
    assert held.hold is not None
    held.hold.set()
    north.wait_task(stuck.name)
    north.answer(stuck.name, failure())
    north.wait_over(stuck.name)


def test_a_task_that_the_server_forgot_is_dropped(north: StandInSite, gateway: StandIn) -> None:
    question, update = task(gateway.publish(some())), some()
    north.ask(question)  # no update is expected: its task is unknown there
    north.wait_task(question.name)
    north.answer(question.name, result(question, update), update)
    north.wait_over(question.name)
    assert f"task {question.name[:12]}: dropped" in north.log
    assert not (north.shared.inbox / question.model).exists()
    north.wait(lambda: gateway.beats[-1].tasks == (), "a heartbeat without the task")


def test_a_model_that_the_server_does_not_give_drops_its_task(north: StandInSite, gateway: StandIn) -> None:
    question = task("a" * 64)
    north.ask(question)
    north.wait(lambda: f"task {question.name[:12]}: dropped" in north.log, "the end")
    north.wait_over(question.name)


def test_a_reply_that_the_server_refuses_is_dropped(north: StandInSite, gateway: StandIn) -> None:
    question = task(gateway.publish(some()), train=False)
    north.ask(question)
    north.wait_task(question.name)
    gateway.add("POST", ".*push-messages", times=99, status=403)
    north.answer(question.name, result(question, None))
    north.wait_over(question.name)
    assert f"task {question.name[:12]}: dropped" in north.log
    assert len(gateway.asked("POST", ".*push-messages")) == 1


def test_a_refused_update_is_told_as_a_failure(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    question, update = task(gateway.publish(some())), some()
    identity = north.ask(question, len(update) + 1)
    north.wait_task(question.name)
    north.answer(question.name, result(question, update), update)
    north.wait_over(question.name)
    assert link.reply(identity).error.reason == "UploadRefusedError"
    assert [line["event"] for line in north.audit(question.name)] == ["sending", "sending", "delivered"]


def test_a_model_that_always_comes_damaged_is_told_as_a_failure(
    north: StandInSite, gateway: StandIn, link: SuperLink
) -> None:
    question = task(gateway.publish(some()))
    gateway.models[question.model] = some()
    identity = north.ask(question, 1)
    north.wait(lambda: len(north.audit(question.name)) == 2, "the answer")
    north.wait_over(question.name)
    assert link.reply(identity).error.reason == "DamagedDownloadError"


def test_a_tampered_update_never_leaves(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    question, update = task(gateway.publish(some())), some()
    identity = north.ask(question, len(update))
    north.wait_task(question.name)
    (north.shared.outbox / hashlib.sha256(update).hexdigest()).write_bytes(update[:-1] + b"?")
    north.answer(question.name, result(question, update))
    north.wait_over(question.name)
    assert link.reply(identity).error.reason == "OutboxFileError"
    assert not gateway.asked("PATCH", ".*")
    assert [line["update"] for line in north.audit(question.name)] == [None, None]


@pytest.mark.parametrize("content", ["{}", "\x00", pack(info()), "x" * 100_000])
def test_a_reply_that_answers_something_else_never_leaves(
    north: StandInSite, gateway: StandIn, link: SuperLink, content: str
) -> None:
    question = task(gateway.publish(some()))
    identity = north.ask(question, 1)
    north.wait_task(question.name)
    put_file(north.shared.reply(question.name), reply_content(question.name, content).encode())
    north.wait_over(question.name)
    assert link.reply(identity).error.reason == "ReplyFileError"


def test_a_damaged_reply_is_put_aside_and_waited_for_again(
    north: StandInSite, gateway: StandIn, link: SuperLink
) -> None:
    question = task(gateway.publish(some()))
    identity = north.ask(question, 1)
    north.wait_task(question.name)
    file = north.shared.reply(question.name)
    put_file(file, reply_content("e" * 32, pack(failure())).encode())
    north.wait(lambda: f"{file}: was changed or cut" in north.log, "the warning")
    text = north.answer(question.name, result(question, None))
    north.wait_over(question.name)
    assert from_record(link.reply(identity).content) == text
    assert file.with_name(f"{file.name}.damaged").exists()


def test_what_nobody_asked_for_is_never_sent(north: StandInSite, gateway: StandIn) -> None:
    north.wait_connected()
    stranger = "e" * 32
    north.answer(stranger, info())
    (north.shared.outbox / "scan.nii.gz").write_bytes(b"secret")
    north.wait(lambda: north.log.count("no task asked for this file") == 2, "the complaint")
    time.sleep(2.2)  # two more looks
    assert north.log.count("no task asked for this file") == 2
    assert str(north.shared.reply(stranger)) in north.log
    assert "scan.nii.gz" in north.log
    assert not gateway.asked("POST", ".*push-messages")
    assert north.audit(stranger) == []


def test_weights_that_two_tasks_name_stay_for_the_second(north: StandInSite, gateway: StandIn) -> None:
    digest = gateway.publish(some())
    first, second = task(digest, train=False), task(digest, train=False)
    north.ask(first)
    north.ask(second)
    north.wait_task(first.name)
    north.wait_task(second.name)
    north.answer(first.name, result(first, None))
    north.wait_over(first.name)
    assert (north.shared.inbox / digest).exists()
    north.answer(second.name, result(second, None))
    north.wait_over(second.name)
    assert not (north.shared.inbox / digest).exists()


def test_what_was_taken_out_of_the_inbox_is_put_back(north: StandInSite, gateway: StandIn) -> None:
    question, other = task(gateway.publish(some())), task(gateway.publish(some()))
    north.ask(question, 1)
    north.ask(other, 1)
    north.wait_task(question.name)
    north.wait_task(other.name)
    north.shared.task(question.name).unlink()
    (north.shared.inbox / other.model).unlink()
    assert north.wait_task(question.name) == pack(question).encode()
    north.wait((north.shared.inbox / other.model).exists, "the weights")
    for name in (question.name, other.name):
        north.answer(name, failure())
        north.wait_over(name)


def test_a_full_disk_is_waited_out(north: StandInSite, gateway: StandIn) -> None:
    """No file may grow beyond 200 kB in this process, until the limit is lifted from outside."""
    assert north.process is not None
    north.wait_connected()
    _, hard = resource.prlimit(north.process.pid, resource.RLIMIT_FSIZE, (200_000, -1))
    model = some()
    question = task(gateway.publish(model))
    north.ask(question, 1)
    north.wait(lambda: "free space" in north.log, "the complaint")
    assert str(north.shared.inbox) in north.log
    count = len(gateway.beats)
    north.wait(lambda: len(gateway.beats) > count, "a heartbeat")
    resource.prlimit(north.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    north.wait_task(question.name)
    assert (north.shared.inbox / question.model).read_bytes() == model
    north.answer(question.name, failure())
    north.wait_over(question.name)


def test_nothing_leaves_that_cannot_be_written_down(north: StandInSite, gateway: StandIn) -> None:
    """While another process holds the audit log."""
    question, update = task(gateway.publish(some())), some()
    north.ask(question, len(update))
    north.wait_task(question.name)
    with (north.state / "courier-audit.jsonl").open("r+b") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        north.answer(question.name, result(question, update), update)
        count = len(gateway.beats)
        north.wait(lambda: len(gateway.beats) > count + 1, "two heartbeats")
        assert not gateway.asked("PATCH|HEAD", ".*")
        assert not gateway.asked("POST", ".*push-messages")
    north.wait_over(question.name)
    assert len(gateway.asked("PATCH", ".*")) == 1


def test_the_server_may_go_away_and_come_back(north: StandInSite, gateway: StandIn, link: SuperLink) -> None:
    question = task(gateway.publish(some()), train=False)
    north.ask(question)
    north.wait_task(question.name)
    for path in ("/v1/fleet/.*", "/heartbeat"):
        gateway.add("POST", path, times=4, status=503)
    with gateway.impatient():
        north.wait(lambda: len([item for item in gateway.requests if item.status == 503]) == 8, "the server's absence")
    north.answer(question.name, result(question, None))
    north.wait_over(question.name)
    assert "the server answers 503; trying again" in north.log


def test_a_node_that_is_not_known_any_more_signs_on_again(
    north: StandInSite, gateway: StandIn, link: SuperLink
) -> None:
    gateway.add("POST", ".*pull-messages", status=401, word="unknown-site")
    with gateway.impatient():
        north.wait(lambda: gateway.asked("POST", ".*activate-node"), "another activation")
    assert "ask the coordinator whether this site's certificate is still accepted" in north.log
    question = task(gateway.publish(some()), train=False)
    north.ask(question)
    north.wait_task(question.name)
    north.answer(question.name, result(question, None))
    north.wait_over(question.name)


def test_it_starts_soon_stays_small_and_ends_at_once(tmp_path: Path, gateway: StandIn, link: SuperLink) -> None:
    """With a model of 200 MB, without PyTorch and SciPy."""
    model = os.urandom(2**20) * 200
    digest = hashlib.sha256(model).hexdigest()
    gateway.models[digest] = model
    gateway.keep_updates = False
    began = time.monotonic()
    with site(tmp_path / "site", gateway, link) as south:
        assert south.process is not None
        south.wait_connected()
        start = time.monotonic() - began
        question = task(digest)
        south.ask(question, len(model))
        south.wait(south.shared.task(question.name).exists, "the task", 60)
        south.answer(question.name, result(question, model), model)
        south.wait(lambda: question.name not in south.held(), "the end", 60)
        gateway.keep_updates = True
        status = Path(f"/proc/{south.process.pid}/status").read_text()
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith("kB")}
        maps = Path(f"/proc/{south.process.pid}/maps").read_text()
        seconds = south.kill(signal.SIGTERM)  # while its question for messages is held
        speeds = [line.split("fedvox.courier: ")[1] for line in south.log.splitlines() if "MB/s" in line]
        print(f"start {start:.2f} s, peak {sizes['VmHWM'] / 1000:.0f} MB, anonymous {sizes['RssAnon'] / 1000:.0f} MB")
        print(f"end {seconds:.2f} s; {'; '.join(speeds)}")
        assert not any(name in maps for name in ("/torch/", "/scipy/", "/pandas/"))
        assert sizes["RssAnon"] < 100_000
        assert seconds < 2
        wait_for(lambda: not link.is_online(south.node), "the sign-off")


def test_a_stop_does_not_wait_for_a_transfer(tmp_path: Path, gateway: StandIn, link: SuperLink) -> None:
    with site(tmp_path / "site", gateway, link) as south:
        question = task(gateway.publish(some()))
        held = gateway.add("GET", f"/models/{question.model}", hold=threading.Event())
        south.ask(question, 1)
        south.wait(lambda: held.seen, "the download")
        assert south.kill(signal.SIGTERM) < 2


def test_neither_torch_nor_scipy_is_imported() -> None:
    """Everything that the process imports, for it imports nothing later."""
    code = "import sys; import client.courier.main, client.courier.courier; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    modules = set(found.stdout.split())
    assert "client.courier.courier" in modules
    assert not modules & {"torch", "scipy", "monai", "nibabel", "pydicom", "opacus", "ray", "matplotlib"}
