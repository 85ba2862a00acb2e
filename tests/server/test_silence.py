"""A message, or the answer to it, that was lost: nobody waits a whole deadline for a site that is idle in truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from flwr.app import Message

from server.app import Patience
from server.state import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, ShakyGrid, app_of, is_task, nodes, run, site
from tests.server.test_coming_and_going import TWO_OF_THREE, Walking

THREE = [site("a", 30, 1.0), site("b", 20, 1.2), site("c", 10, 0.8)]
PATIENCE = Patience(
    deadline_seconds=60,
    silence_seconds=1.5,
    offline_seconds=30,
    stall_seconds=0.05,
    look_seconds=0.01,
    retry_seconds=0.05,
)


def outcomes(folder: RunFolder, name: str) -> list[tuple[str, str | None] | None]:
    lines = [item["sites"].get(name) for item in folder.read_rounds()]
    return [line and (line["status"], line["reason"]) for line in lines]


def test_a_lost_task_costs_one_round(tmp_path: Path) -> None:
    """It is told by its own reason, and the site is asked again in the next round."""
    folder = RunFolder.create(tmp_path / "run")
    lost = {"1"}
    grid = ShakyGrid(
        app_of(THREE), nodes(3), hangs=lambda node, sent: node == 3 and is_task(sent) and sent.metadata.group_id in lost
    )
    run(tiny.federation(rounds=3, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, PATIENCE)
    assert outcomes(folder, "c") == [("missing", "silence"), ("ok", None), ("ok", None), ("ok", None)]
    assert set(outcomes(folder, "a")) == {("ok", None)}


def test_a_lost_wait_message_costs_no_more(tmp_path: Path) -> None:
    class Forgetful(Walking):
        """Answers three times, then no more."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            message_ids = list(message_ids)
            message = self._waiting.get(message_ids[0])
            mine = message is not None and message.metadata.dst_node_id == 3 and message.metadata.group_id == "1"
            return [] if mine and self.step == 3 else super().pull_messages(message_ids)

    folder = RunFolder.create(tmp_path / "run")
    grid = Forgetful(app_of(THREE), nodes(3), last=12)
    run(tiny.federation(rounds=1, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, PATIENCE)
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert grid.step == 3


def test_a_site_that_keeps_giving_signs_of_life_is_waited_for(tmp_path: Path) -> None:
    """Also while its step does not move, as when it prepares its scans."""
    folder = RunFolder.create(tmp_path / "run")
    grid = Walking(app_of(THREE), nodes(3), last=12, pause=0.2)
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, grid, PATIENCE)
    assert outcomes(folder, "c")[0] == ("ok", None)
    assert folder.read_rounds()[0]["seconds"] > PATIENCE.silence_seconds
    folder = RunFolder.create(tmp_path / "standing")
    grid = Walking(app_of(THREE), nodes(3), last=12, grows=False)
    quick = replace(PATIENCE, deadline_seconds=3)
    run(tiny.federation(rounds=1, strategy=TWO_OF_THREE), app_of(THREE), LAYOUT, 3, folder, grid, quick)
    assert outcomes(folder, "c")[0] == ("missing", "deadline")
    assert folder.read_rounds()[0]["seconds"] > 3 > PATIENCE.silence_seconds


def test_an_upload_that_has_begun_is_no_silence(tmp_path: Path) -> None:
    class Slow(ShakyGrid):
        """As Flower: who asks for a reply whose upload has begun waits for all of it."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            message_ids = list(message_ids)
            message = self._waiting.get(message_ids[0])
            if message is not None and message.metadata.dst_node_id == 3 and is_task(message):
                threading.Event().wait(2 * PATIENCE.silence_seconds)
            return super().pull_messages(message_ids)

    folder = RunFolder.create(tmp_path / "run")
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, Slow(app_of(THREE), nodes(3)), PATIENCE)
    assert outcomes(folder, "c")[0] == ("ok", None)


def test_time_offline_is_no_silence(tmp_path: Path) -> None:
    """Its reply is there soon after the line is back."""
    folder = RunFolder.create(tmp_path / "run")
    asked_at: list[float] = []

    def hangs(node: int, message: Message) -> bool:
        if node != 3 or not is_task(message):
            return False
        asked_at.append(time.monotonic())
        return time.monotonic() - asked_at[0] < 2 * PATIENCE.silence_seconds

    def online(node: int) -> bool:
        away = bool(asked_at) and time.monotonic() - asked_at[0] < 1.8 * PATIENCE.silence_seconds
        return not (node == 3 and away)

    grid = ShakyGrid(app_of(THREE), nodes(3), hangs=hangs, online=online)
    # Who is online is looked up before every look for a reply: Flower gives up the reply of a node that is away.
    run(tiny.federation(rounds=1), app_of(THREE), LAYOUT, 3, folder, grid, replace(PATIENCE, look_seconds=0.0))
    assert outcomes(folder, "c")[0] == ("ok", None)
