"""Whatever is killed at whatever point of a round, every round counts once and the model is the one it must be."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from common.audit import verify
from common.planning import plan_from_config
from server.app_lock import app_holder
from server.initial_weights import initial_weights
from tests.e2e.network_federation import SCRIPTED, Federation, assert_same_model, federation, simulated, wait_for
from tests.e2e.relay import relay

pytestmark = [pytest.mark.network, pytest.mark.long]

VICTIM = "west"
"""The site whose processes are killed. ``east`` ends a round when the test says so."""
PATIENCE_SECONDS = 300


POINTS = ("waiting", "sent", "training", "uploading", "between")
ROUND_AT_STAKE = {"sent": 1, "training": 2, "uploading": 3, "between": 4}
PROCESSES = ("superlink", "app", "proxy", "supernode", "runner")
EVERYTHING = ("everything",)


def shifted(*shifts: int) -> dict[str, tuple[str, ...]]:
    """A diagonal of the table of points and processes for every shift."""
    return {
        point: tuple(PROCESSES[(index + shift) % len(PROCESSES)] for shift in shifts)
        for index, point in enumerate(POINTS)
    }


# Every process is killed at every point. In one federation each is killed but once or twice: what dies again and
# again is started again ever later.
TABLE = {"first": shifted(0, 1), "second": shifted(2, 3), "third": shifted(4), "all": dict.fromkeys(POINTS, EVERYTHING)}


class Killer:
    """Kills processes at the points of a round, and knows when they are back."""

    def __init__(self, made: Federation, plan: dict[str, tuple[str, ...]]) -> None:
        self._made = made
        self._plan = plan

    def kill(self, point: str) -> None:
        """SIGKILL to all whose turn it is; returns when each has a successor."""
        names = self._plan[point]
        before = {name: self._existing(name) for name in names}
        if names == EVERYTHING:
            self._kill_everything()
            return
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for name, pid in before.items():
            wait_for(lambda name=name, pid=pid: self._pid(name) not in (None, pid), PATIENCE_SECONDS, f"another {name}")

    def rounds_at_stake(self) -> set[int]:
        """Rounds in which a process of the victim's own is killed in its work."""
        own = {"supernode", "runner", *EVERYTHING}
        return {number for point, number in ROUND_AT_STAKE.items() if own & set(self._plan[point])}

    def _existing(self, name: str) -> int:
        wait_for(lambda: self._pid(name), PATIENCE_SECONDS, name)
        pid = self._pid(name)
        assert pid is not None
        return pid

    def _pid(self, name: str) -> int | None:
        made = self._made
        if name == "everything":
            return made.processes["server"].pid
        if name == "app":
            holder = app_holder(made.run)
            return holder.pid if holder is not None and holder.alive else None
        return made.site_pid(VICTIM, name) if name in ("supernode", "runner") else made.pid(name)

    def _kill_everything(self) -> None:
        made = self._made
        pids = [self._pid(name) for name in (*PROCESSES, "superexec")]
        starters = [made.processes["server"], made.processes[VICTIM]]
        for pid in [*(starter.pid for starter in starters), *filter(None, pids)]:
            # Some die with the one that started them.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for starter in starters:
            starter.wait()
        made.start_server()
        made.start_site(VICTIM, client=SCRIPTED)


@pytest.mark.parametrize("plan", TABLE.values(), ids=TABLE)
def test_killed_at_five_points_of_a_federation(tmp_path: Path, plan: dict[str, tuple[str, ...]]) -> None:
    with federation(tmp_path, settings=("rounds=4",)) as made, relay(made.port) as line:
        upload = initial_weights(plan_from_config(made.config), made.config.seed)[0].nbytes
        made.put_between(VICTIM, line.port)
        made.hold("east", 1, 2, 3)
        made.hold(VICTIM, 2, 3)
        killer = Killer(made, plan)

        made.start("east", VICTIM, scripted=("east", VICTIM))
        wait_for(lambda: len(made.events("site_ready")) == 2, PATIENCE_SECONDS, "two sites")
        killer.kill("waiting")
        made.start_site("north")

        wait_for(lambda: made.said("round_started"), PATIENCE_SECONDS, "the first task")
        killer.kill("sent")
        wait_for(lambda: made.answered(VICTIM, 1), PATIENCE_SECONDS, "an answer in round 1")
        made.hold("east", 2, 3)

        wait_for(lambda: made.held_in(VICTIM) == 2, PATIENCE_SECONDS, "training")
        killer.kill("training")
        made.hold(VICTIM, 3)
        wait_for(lambda: made.answered(VICTIM, 2), PATIENCE_SECONDS, "an answer in round 2")
        made.hold("east", 3)

        wait_for(lambda: made.held_in(VICTIM) == 3, PATIENCE_SECONDS, "training")
        line.stall_after(upload // 2)
        made.hold(VICTIM, 0)
        wait_for(line.stalled.is_set, PATIENCE_SECONDS, "half an upload")
        killer.kill("uploading")
        line.go_on()
        wait_for(lambda: made.answered(VICTIM, 3), PATIENCE_SECONDS, "an answer in round 3")
        made.hold("east", 0)

        wait_for(lambda: len(made.rounds()) == 3, PATIENCE_SECONDS, "the end of round 3")
        killer.kill("between")
        made.finish(PATIENCE_SECONDS)

        rounds = made.rounds()
        phases = [(entry["round"], entry["phase"]) for entry in rounds]
        assert phases == [*((number, "train") for number in range(1, 5)), (5, "evaluate")]
        verify(made.run / "audit.jsonl")
        outcomes = {(entry["round"], name): site for entry in rounds for name, site in entry["sites"].items()}
        counted = {where for where, site in outcomes.items() if site["status"] == "ok"}
        absent = {(number, name) for number in range(1, 5) for name in made.sites} - counted
        print(f"{plan}: not counted {sorted(absent)}")
        # A site whose own process was killed may have lost that round's work. Nobody loses anything else, but that on a
        # slow machine the first round may begin without the site that comes last.
        assert absent <= {(number, VICTIM) for number in killer.rounds_at_stake()} | {(1, "north")}
        assert all(outcomes[where]["reason"] for where in absent & outcomes.keys())
        expected = simulated(made, tmp_path / "undisturbed", absent=absent)
        assert_same_model(made.run, expected.path, 4)
