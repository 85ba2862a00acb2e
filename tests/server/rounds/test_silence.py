"""Signs of life: nobody waits a whole deadline for a site that has not got its task, and one at work is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from common.protocol.codec import Task
from common.protocol.messages import Heartbeat
from server.rounds.exchange import MOST_DEADLINES
from server.rounds.round_loop import Patience
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, FakeNetwork, Silent, Sites, is_task, run_network, site, task_of
from tests.server.rounds.test_coming_and_going import TWO_OF_THREE, outcomes

THREE: Sites = [site("a", 30, 1.0), site("b", 20, 1.2), site("c", 10, 0.8)]
PATIENCE = Patience(
    deadline_seconds=60,
    silence_seconds=60,
    offline_seconds=60,
    resend_seconds=0.1,
    stall_seconds=10,
    look_seconds=0.01,
    retry_seconds=0.05,
)
ONE_ROUND = tiny.federation(rounds=1, strategy=TWO_OF_THREE)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


class Recording(FakeNetwork):
    """Knows which messages node 3 was sent in round 1, and for which task."""

    def __init__(self, folder: RunFolder, tasks: list[tuple[str, Task]] | None = None) -> None:
        super().__init__(folder, THREE, tasks=tasks)
        self.sent: dict[str, str] = {}

    def push_messages(self, messages: list[Message]) -> list[str]:  # type: ignore[override]
        messages = list(messages)
        self.sent |= {message.metadata.message_id: task_of(message) for message in messages if self.is_third(message)}
        return list(super().push_messages(messages))

    @staticmethod
    def is_third(message: Message) -> bool:
        return message.metadata.dst_node_id == 3 and message.metadata.group_id == "1" and is_task(message)


def test_a_task_that_is_lost_is_sent_again_and_worked_on_once(folder: RunFolder) -> None:
    tasks: list[tuple[str, Task]] = []
    network = Recording(folder, tasks)
    network.loses = lambda node, message: network.is_third(message) and len(network.sent) == 1
    run_network(ONE_ROUND, network, LAYOUT, PATIENCE)
    assert outcomes(folder, "c") == [("ok", None), ("ok", None)]
    assert len(network.sent) == 2, "two messages of Flower's"
    assert len(set(network.sent.values())) == 1, "for one task"
    assert [task.round for name, task in tasks if name == "c"] == [1, 2]
    assert folder.read_rounds()[0]["seconds"] < 30


def test_a_site_that_never_holds_its_task_is_given_up_and_asked_again_in_the_next_round(folder: RunFolder) -> None:
    """It gives signs of life all the time, and is told by a reason of its own."""
    network = Recording(folder)
    network.loses = lambda node, message: network.is_third(message)
    patience = replace(PATIENCE, silence_seconds=0.6)
    run_network(tiny.federation(rounds=3, strategy=TWO_OF_THREE), network, LAYOUT, patience)
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert outcomes(folder, "c")[-1] == ("ok", None)
    assert len(network.sent) > 1
    assert len(set(network.sent.values())) == 1
    assert set(outcomes(folder, "a")) == {("ok", None)}


def test_a_task_that_is_held_is_not_sent_again(folder: RunFolder) -> None:
    network, held_until = Recording(folder), [0.0]

    def hangs(node: int, message: Message) -> bool:
        if not network.is_third(message):
            return False
        held_until[0] = held_until[0] or time.monotonic() + 8 * PATIENCE.resend_seconds
        return time.monotonic() < held_until[0]

    network.hangs = hangs
    run_network(ONE_ROUND, network, LAYOUT, PATIENCE)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert len(network.sent) == 1
    assert folder.read_rounds()[0]["seconds"] > 4 * PATIENCE.resend_seconds


def test_of_a_task_that_came_twice_the_newer_message_is_answered(folder: RunFolder) -> None:
    """The first one was only late: both are there when the site looks."""
    tasks: list[tuple[str, Task]] = []

    class Late(Recording):
        def act(self, node: int) -> None:
            mail = self._mail.get(node, {})
            late = {key: message for key, message in mail.items() if self.is_third(message)} if node == 3 else {}
            if len(self.sent) < 2:
                for identity in late:
                    del mail[identity]
            super().act(node)
            if len(self.sent) < 2:
                mail.update(late)

    network = Late(folder, tasks)
    run_network(ONE_ROUND, network, LAYOUT, PATIENCE)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert len(network.sent) == 2
    assert [task.round for name, task in tasks if name == "c"] == [1, 2]


def test_a_reply_that_the_gateway_did_not_see_is_given_again(folder: RunFolder) -> None:
    """The gateway was killed when SuperLink had the reply. The site is done, so it does not hold the task any more."""
    tasks: list[tuple[str, Task]] = []

    class Blind(Recording):
        def _send(self, node: int, message: Message, reply: Message) -> None:
            if not (self.is_third(message) and len(self.sent) == 1):
                super()._send(node, message, reply)

    network = Blind(folder, tasks)
    run_network(ONE_ROUND, network, LAYOUT, PATIENCE)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert len(network.sent) == 2
    assert [task.round for name, task in tasks if name == "c"] == [1, 2], "it was worked on once"


def test_a_site_that_loses_its_task_after_a_long_time_gets_it_again(folder: RunFolder) -> None:
    """Its disk was replaced, say. While it held the task there was no step to tell of: it prepared its scans."""
    network = Recording(folder)
    patience = replace(PATIENCE, silence_seconds=0.8)
    began: list[float] = []

    def hangs(node: int, message: Message) -> bool:
        if not network.is_third(message) or len(network.sent) > 1:
            return False
        began.append(time.monotonic())
        if time.monotonic() - began[0] > 2 * patience.silence_seconds:
            network._held[3].clear()
        return True

    network.hangs = hangs
    run_network(ONE_ROUND, network, LAYOUT, patience)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert len(network.sent) == 2


class Walking(FakeNetwork):
    """Node 3 does one step of round 1 every ``pause`` seconds, and says so, until it has done ``last``."""

    def __init__(self, folder: RunFolder, last: int, pause: float, grows: Callable[[int], bool] | None = None) -> None:
        super().__init__(folder, THREE)
        self._last = last
        self._pause = pause
        self._grows = grows or (lambda step: True)
        self._at = 0.0
        self.step = 0

    def works(self, node: int, message: Message) -> bool:
        if node != 3 or message.metadata.group_id != "1" or not is_task(message):
            return True
        if time.monotonic() - self._at >= self._pause and self._grows(self.step):
            self._at = time.monotonic()
            self.step += 1
        return self.step > self._last

    def step_of(self, node: int) -> tuple[int, int]:
        return (self.step, self._last) if node == 3 else (0, 0)


def test_steps_move_the_deadline_of_their_site(folder: RunFolder) -> None:
    """Twelve steps of 0.3 s and more against a deadline of 1.5 s."""
    network, observer = Walking(folder, last=12, pause=0.3), Silent()
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, deadline_seconds=1.5), observer)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert folder.read_rounds()[0]["seconds"] > 2
    seen = [step for _, step in observer.steps]
    assert {name for name, _ in observer.steps} == {"c"}
    assert seen == sorted(set(seen)), "each step once, and none backwards"
    assert set(seen) <= set(range(1, 13))


def test_a_site_whose_steps_stand_still_is_given_up(folder: RunFolder) -> None:
    """It says all the time that it holds its task: that alone is no progress."""
    network = Walking(folder, last=12, pause=0.0, grows=lambda step: step < 3)
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, deadline_seconds=0.8, silence_seconds=0.3))
    assert outcomes(folder, "c")[0] == ("missing", "deadline")
    assert folder.read_rounds()[0]["seconds"] > 0.8


def test_a_site_that_prepares_its_scans_is_waited_for(folder: RunFolder) -> None:
    """It holds the task and has no step to tell of, for longer than a site is waited for that does not hold it."""
    began: list[float] = []

    def hangs(node: int, message: Message) -> bool:
        if node != 3 or not is_task(message):
            return False
        began.append(time.monotonic())
        return time.monotonic() - began[0] < 1

    network = FakeNetwork(folder, THREE, hangs=hangs)
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, silence_seconds=0.3))
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert folder.read_rounds()[0]["seconds"] > 0.8


def test_however_slowly_a_site_goes_on_it_has_no_more_than_some_deadlines(folder: RunFolder) -> None:
    network = Walking(folder, last=10**6, pause=0.0)
    patience = replace(PATIENCE, deadline_seconds=0.1)
    config = tiny.federation(rounds=1, strategy=TWO_OF_THREE, training={"local_steps": 10**6})
    run_network(config, network, LAYOUT, patience)
    assert outcomes(folder, "c")[0] == ("missing", "deadline")
    assert folder.read_rounds()[0]["seconds"] > MOST_DEADLINES * patience.deadline_seconds


def test_steps_beyond_those_of_the_task_move_no_deadline(folder: RunFolder) -> None:
    """It claims step after step of 10^12, of a task of 40."""
    network, observer = Walking(folder, last=10**12, pause=0.0), Silent()
    patience = replace(PATIENCE, deadline_seconds=0.5)
    run_network(ONE_ROUND, network, LAYOUT, patience, observer)
    assert outcomes(folder, "c")[0] == ("missing", "deadline")
    assert max(step for _, step in observer.steps) <= 40
    assert folder.read_rounds()[0]["seconds"] < MOST_DEADLINES * patience.deadline_seconds / 2


def test_steps_of_another_task_move_nothing(folder: RunFolder) -> None:
    """Of the round before, say, with which the site is not done yet."""

    class Elsewhere(Walking):
        def beat(self, node: int) -> None:
            if node != 3:
                super().beat(node)
                return
            mine = [name for name, message in self._held[3].items() if is_task(message)]
            beat = Heartbeat((*mine, "f" * 32), "f" * 32, self.step, 10**9)
            self.gateway.note_heartbeat("c", beat)

    observer = Silent()
    patience = replace(PATIENCE, deadline_seconds=0.8)
    run_network(ONE_ROUND, Elsewhere(folder, last=10**6, pause=0.0), LAYOUT, patience, observer)
    assert outcomes(folder, "c")[0] == ("missing", "deadline")
    assert folder.read_rounds()[0]["seconds"] < 8
    assert observer.steps == []


class Mute(FakeNetwork):
    """Node 3 gives no sign of life once it has a task, and is never done with it; SuperLink takes it for online."""

    def beat(self, node: int) -> None:
        if node != 3 or not any(is_task(message) for message in self._held[3].values()):
            super().beat(node)


def test_a_site_that_gives_no_sign_of_life_is_given_up_soon(folder: RunFolder) -> None:
    network = Mute(folder, THREE, hangs=lambda node, message: node == 3 and is_task(message))
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, offline_seconds=0.5))
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert folder.read_rounds()[0]["seconds"] < 30
    assert set(outcomes(folder, "a")) == {("ok", None)}


def test_a_site_that_never_gave_a_sign_of_life_is_given_up_soon(folder: RunFolder) -> None:
    class Dumb(FakeNetwork):
        def beat(self, node: int) -> None:
            if node != 3:
                super().beat(node)

    network = Dumb(folder, THREE, hangs=lambda node, message: node == 3 and is_task(message))
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, offline_seconds=0.5))
    assert outcomes(folder, "c")[0] == ("missing", "silence")


def test_a_site_that_was_silent_for_a_while_is_waited_for(folder: RunFolder) -> None:
    """The line was down for longer than until a task is sent again, and its reply is there when it is back."""
    began: list[float] = []

    def hangs(node: int, message: Message) -> bool:
        if node == 3 and is_task(message):
            began.append(time.monotonic())
        return node == 3 and is_task(message) and time.monotonic() - began[0] < 0.5

    network = Mute(folder, THREE, hangs=hangs)
    run_network(ONE_ROUND, network, LAYOUT, PATIENCE)
    assert outcomes(folder, "c") == [("ok", None), ("ok", None)]


def test_a_sign_of_life_from_before_the_task_says_nothing_about_it(folder: RunFolder) -> None:
    """It is the last one of a site that fell silent: that the task is not in it is no reason to send it again."""
    network = Recording(folder)

    def beat(node: int) -> None:
        if node != 3 or not network.sent:
            FakeNetwork.beat(network, node)

    network.beat = beat  # type: ignore[method-assign]
    network.hangs = lambda node, message: network.is_third(message)
    run_network(ONE_ROUND, network, LAYOUT, replace(PATIENCE, offline_seconds=0.6))
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert len(network.sent) == 1
