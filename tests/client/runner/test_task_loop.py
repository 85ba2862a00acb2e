"""What a runner does with the tasks that it finds, in a process of its own whose training is a stand-in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.consent.decisions import DecisionBook
from client.consent.hospital_file import HospitalFile
from client.consent.site_config import SITE_FILE
from client.consent.terms import terms_of
from client.runner.task_journal import KEPT
from client.shared_folder import reply_content
from client.state_folder import AUDIT_FILE
from common.protocol.codec import pack, unpack_answer
from common.protocol.messages import Hello, Result, SiteInfo
from common.system.state_file import write_sealed
from common.weights.store import FileStore, digest_of
from tests.client.runner.stand_in import CONFIG, SIZE, StandIn

LONG = 100_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path)
    made.make()
    yield made
    made.kill()


def update_of(reply: bytes) -> str:
    answer = unpack_answer(reply)
    assert isinstance(answer, Result) and answer.update is not None
    return answer.update


def test_an_update_lies_in_the_outbox_under_its_digest_and_the_log_says_what_leaves(site: StandIn) -> None:
    site.start()
    name = site.give(site.task())
    digest = update_of(site.reply(name))
    update = FileStore(site.shared.outbox).get(digest)
    assert digest_of(update) == digest
    [sent] = site.entries("sent")
    assert (sent.details["kind"], sent.details["round"], sent.details["update"]) == ("train", 1, digest)
    assert sent.details["update_bytes"] == update.size
    assert sorted(file.name for file in site.shared.outbox.iterdir()) == sorted([digest, f"{name}.reply"])


def test_a_task_that_comes_again_gets_the_same_answer_also_from_another_runner(site: StandIn) -> None:
    site.start()
    task = site.task()
    first = site.take(site.give(task))
    again = site.take(site.give(task))
    site.kill()
    site.start()
    assert first == again == site.take(site.give(task))
    assert site.trained() == [1]
    assert len(site.paid()) == 1
    assert [entry.details["update"] for entry in site.entries("sent")] == [update_of(first)] * 3


def test_an_answer_whose_update_is_gone_or_changed_is_not_sent_again(site: StandIn) -> None:
    site.start()
    task = site.task()
    update = site.shared.outbox / update_of(site.take(site.give(task)))
    content = bytearray(update.read_bytes())
    content[5] ^= 1
    update.write_bytes(content)
    assert site.failure(site.give(task)) == ("TASK_LOST", "MissingWeightsError")
    site.take(task.name)
    update.unlink()
    assert site.failure(site.give(task)) == ("TASK_LOST", "MissingWeightsError")
    assert site.trained() == [1], "it is not trained again either"


def test_updates_stay_until_the_next_task_and_as_long_as_an_answer_waits_for_them(site: StandIn) -> None:
    site.start()
    delivered = update_of(site.take(site.give(site.task(1))))
    waiting = update_of(site.reply(site.give(site.task(2))))
    assert not (site.shared.outbox / delivered).exists()
    stranger = site.shared.outbox / ("f" * 64)
    stranger.write_bytes(b"of nobody")
    last = update_of(site.reply(site.give(site.task(3))))
    found = {file.name for file in site.shared.outbox.iterdir() if len(file.name) == 64}
    assert found == {waiting, last}


def test_old_records_are_removed(site: StandIn) -> None:
    DecisionBook(site.state.path, site.consent).allow_more(terms_of(site.kit), CONFIG.rounds)
    site.start(steps=1)
    names = [site.give(site.task(number, run)) for run in ("a", "b") for number in range(1, 10) if site_answers(site)]
    site.reply(names[-1])
    left = {file.stem for file in site.state.journal.iterdir()}
    assert names[-1] in left and len(left) <= KEPT + 1


def site_answers(site: StandIn) -> bool:
    """Takes whatever is answered or open, so that one task follows the other."""
    for name in site.shared.tasks():
        site.take(name)
    return True


def test_a_site_says_who_it_is_while_it_trains(site: StandIn) -> None:
    site.start(steps=LONG)
    name = site.give(site.task())
    site.wait_for_step()
    answer = site.answer(site.give(Hello("a-run", CONFIG.digest())))
    assert isinstance(answer, SiteInfo) and answer.site == "north"
    assert not site.shared.reply(name).exists() and site.shared.work().task == name
    assert site.status["state"] == "working"


def test_a_newer_task_ends_the_work_on_an_older_one(site: StandIn) -> None:
    site.start(steps=LONG)
    old = site.give(site.task(1))
    site.wait_for_step()
    new = site.give(site.task(2))
    assert site.failure(old) == ("TASK_LOST", "SupersededError")
    site.wait_for(lambda: site.shared.work().task == new, "work on the newer task")


def test_an_older_task_does_not_end_the_work_on_a_newer_one(site: StandIn) -> None:
    site.start(steps=LONG)
    new = site.give(site.task(2))
    site.wait_for_step()
    assert site.failure(site.give(site.task(1))) == ("TASK_LOST", "SupersededError")
    assert site.shared.work().task == new and site.trained() == [2]


def test_of_several_tasks_that_wait_the_newest_is_done(site: StandIn) -> None:
    names = {number: site.give(site.task(number)) for number in (1, 3, 2)}
    site.start()
    assert isinstance(site.answer(names[3]), Result)
    assert [site.failure(names[number]) for number in (1, 2)] == [("TASK_LOST", "SupersededError")] * 2
    assert site.trained() == [3]


def test_an_older_copy_of_a_record_does_not_cover_another_answer(site: StandIn) -> None:
    site.start()
    task = site.task()
    first = site.take(site.give(task))
    [counted] = site.entries("task_counted")
    file = site.state.journal / f"{task.name}.json"
    write_sealed(file, {"name": task.name, "attempt": counted.details["attempt"], "reply": None, "update": None})
    second = site.take(site.give(task))
    assert len({entry.details["attempt"] for entry in site.entries("task_counted")}) == 2
    assert f"{file}: is an older copy" in site.text() and file.with_name(f"{file.name}.damaged").exists()
    assert isinstance(unpack_answer(first), Result) and isinstance(unpack_answer(second), Result)


def test_an_answered_task_is_left_alone(site: StandIn) -> None:
    task = site.task()
    site.shared.reply(site.give(task)).write_text(reply_content(task.name, "an answer"))
    site.start()
    site.answer(site.give(Hello("a-run", CONFIG.digest())))
    assert site.trained() == [] and site.reply(task.name) == b"an answer"


def test_a_task_that_is_taken_back_gets_no_answer_and_counts_as_done(site: StandIn) -> None:
    site.start(steps=60)
    task = site.task()
    site.give(task)
    site.wait_for_step()
    site.shared.task(task.name).unlink()
    site.wait_until("waiting")
    assert not site.shared.replies()
    site.take(site.give(task))
    assert site.trained() == [1]


@pytest.mark.parametrize(
    ("text", "as_name"),
    [
        ("{", ""),
        ("[]", ""),
        ("x" * 100_000, ""),
        ('{"format":5,"kind":"failure","code":1000,"reason":"A"}', ""),
        ("", "0" * 32),
    ],
)
def test_what_is_no_task_is_answered_as_such(site: StandIn, text: str, as_name: str) -> None:
    site.start()
    text = text or pack(site.task())
    assert site.failure(site.give(text, as_name or None)) == ("BAD_TASK", "ProtocolError")
    assert isinstance(site.answer(site.give(site.task(2))), Result), "the runner goes on"


def test_weights_that_are_missing_or_changed_are_not_worked_with_and_cost_nothing(site: StandIn) -> None:
    site.start()
    missing = replace(site.task(1), model="0" * 64)
    assert site.failure(site.give(missing)) == ("BAD_TASK", "BadWeightsError")
    changed = site.task(2)
    file = site.shared.inbox / changed.model
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert site.failure(site.give(changed)) == ("BAD_TASK", "BadWeightsError")
    short = FileStore(site.shared.inbox).put([b"\0" * 8])
    assert site.failure(site.give(replace(site.task(3), model=short))) == ("BAD_TASK", "ProtocolError")
    assert site.trained() == [] and site.paid() == []


def test_rounds_repeated_under_new_names_are_done_as_often_as_was_approved(site: StandIn) -> None:
    """Also by another runner, whose state is new: the count is the hospital's, not the kit's."""
    site.start()
    tasks = [site.task(1, f"run-{number}") for number in range(CONFIG.rounds)]
    for task in tasks[:-1]:
        site.take(site.give(task))
    site.take(site.give(tasks[0]))  # the same task again gets the same answer, and does not count
    site.kill()
    shutil.rmtree(site.state.path)
    site.make()
    site.start()
    assert isinstance(site.answer(site.give(tasks[-1])), Result)
    site.take(tasks[-1].name)
    refused = site.task(1, "one-more")
    assert site.failure(site.give(refused)) == ("APPROVAL_USED_UP", "PolicyError")
    assert len(site.trained()) == CONFIG.rounds


def test_work_that_goes_on_after_a_kill_counts_once(site: StandIn) -> None:
    site.start(steps=LONG)
    task = site.task()
    site.give(task)
    for _ in range(2):
        site.wait_for_step()
        site.kill()
        site.start(steps=LONG)
    site.wait_for_step()
    site.kill()
    contract = HospitalFile(site.consent).contract(CONFIG.digest(), "north")
    assert contract.summary(CONFIG.rounds) == "1 of 9 trainings used"


def test_weights_that_are_not_numbers_cost_nothing(site: StandIn) -> None:
    site.start()
    for value in (np.nan, np.inf, -np.inf):
        weights = np.zeros(SIZE, "<f4")
        weights[-1] = value
        task = replace(site.task(), model=FileStore(site.shared.inbox).put([weights]))
        assert site.failure(site.give(task)) == ("BAD_TASK", "ProtocolError")
        site.take(task.name)
    assert (site.trained(), site.paid()) == ([], [])
    assert not HospitalFile(site.consent).contract(CONFIG.digest(), "north").begun


def test_a_task_that_was_refused_may_be_done_later(site: StandIn) -> None:
    book = DecisionBook(site.state.path, site.consent)
    book.pause()
    site.start()
    task = site.task()
    assert site.failure(site.give(task)) == ("PAUSED", "PolicyError")
    site.take(task.name)
    book.resume()
    assert isinstance(site.answer(site.give(task)), Result)


def test_an_answer_is_not_sent_again_after_a_withdrawal(site: StandIn) -> None:
    site.start()
    task = site.task()
    first = site.take(site.give(task))
    DecisionBook(site.state.path, site.consent).withdraw()
    assert site.failure(site.give(task)) == ("WITHDRAWN", "PolicyError")
    site.take(task.name)
    site.approve()
    assert site.take(site.give(task)) == first


def test_a_failed_attempt_has_paid_for_itself_alone(site: StandIn) -> None:
    """Whoever lets a task fail at the end, by a full disk, must not get a second update for the price of one."""
    site.start(steps=60)
    outbox = site.shared.outbox
    task = site.task()
    site.give(task)
    site.wait_for_step()
    aside = outbox.rename(site.folder / "aside")
    outbox.write_text("no folder")
    site.wait_for(lambda: site.status.get("problem"), "a problem")
    outbox.unlink()
    aside.rename(outbox)
    assert site.failure(task.name) == ("INTERNAL", "OutputError")
    assert site.status["problem"] is None
    site.take(task.name)
    assert isinstance(site.answer(site.give(task)), Result)
    assert [entry.round for entry in site.paid()] == [1, 1] and site.trained() == [1, 1]
    assert len({entry.attempt for entry in site.paid()}) == 2


def test_an_attempt_that_was_killed_is_taken_up_without_paying_again(site: StandIn) -> None:
    site.start(steps=LONG)
    task = site.task()
    site.give(task)
    site.wait_for_step()
    site.kill()
    [paid] = site.paid()
    site.start()
    result = site.answer(task.name)
    assert isinstance(result, Result) and result.epsilon > 0
    assert site.paid() == [paid] and site.trained() == [1, 1]


def test_what_an_attempt_has_paid_does_not_cover_other_models_or_runs(site: StandIn) -> None:
    site.start(steps=LONG)
    site.give(site.task())
    site.wait_for_step()
    site.kill()
    site.start()
    for task in (site.task(run="another"), replace(site.task(), model=site.task(5).model)):
        site.answer(site.give(task))
        site.take(task.name)
    assert len({entry.attempt for entry in site.paid()}) == len(site.paid()) == 3


def test_an_answer_that_cannot_be_written_down_waits_until_it_can(site: StandIn) -> None:
    site.start(steps=60)
    task = site.task()
    site.give(task)
    site.wait_for_step()
    log = site.state.path / AUDIT_FILE
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    site.wait_for(lambda: site.status.get("problem"), "a problem")
    site.wait_until("waiting")
    assert not site.shared.replies()
    log.write_bytes(whole)
    assert isinstance(site.answer(task.name), Result)
    assert site.trained() == [1]


def test_sigterm_breaks_off_the_work(site: StandIn) -> None:
    site.start(steps=LONG)
    site.give(site.task())
    site.wait_for_step()
    assert site.terminate() < 2
    assert not site.shared.replies()


def test_without_room_for_progress_the_work_goes_on(site: StandIn) -> None:
    site.start(steps=60)
    task = site.task()
    site.give(task)
    site.wait_for_step()
    progress = site.shared.path / "progress.json"
    progress.unlink()
    progress.mkdir()
    assert isinstance(site.answer(task.name), Result)


def test_what_a_killed_runner_left_half_written_is_removed(site: StandIn) -> None:
    left = [f".{os.urandom(8).hex()}.part", f".{'a' * 32}.reply.{os.urandom(6).hex()}.part"]
    kept = [".spare", ".probe-aaaaaaaaaaaa", "notes.txt"]
    for name in left + kept:
        (site.shared.outbox / name).write_bytes(b"half")
    site.start()
    site.wait_until("waiting")
    assert sorted(file.name for file in site.shared.outbox.iterdir()) == sorted(kept)


def test_a_limit_that_is_lowered_holds_for_an_attempt_that_was_paid_for(site: StandIn) -> None:
    site.start(steps=LONG)
    task = site.task()
    site.give(task)
    site.wait_for_step()
    site.kill()
    (site.state.path / SITE_FILE).write_text("privacy: {max_epsilon: 0.1, delta: 1.0e-5}\n")
    site.start()
    assert site.failure(task.name) == ("PRIVACY_BUDGET", "PolicyError")
