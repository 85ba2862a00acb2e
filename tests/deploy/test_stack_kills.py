"""In both stacks as they run: whatever is killed at whatever point of a round, every round counts once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.state_folder import site_status
from common.planning.resolve import plan_from_config
from server.progress.events import RoundStarted
from server.rounds.initial_weights import initial_weights
from server.run_store.locks import app_holder
from tests.deploy.machine import Machine, Stack
from tests.deploy.stacks import Coordinator, Hospital, own_address, removed_at_the_end
from tests.e2e.network_federation import Federation, wait_for
from tests.e2e.relay import Relay, relay
from tests.e2e.test_network_kills import check_record

pytestmark = pytest.mark.deploy

SCRIPTED = Path(__file__).with_name("scripted.yaml")
HELD, VICTIM = "east", "north"
"""The first ends a round when the test says so; the second one's processes are killed."""
PATIENCE_SECONDS = 300
TABLE = {
    "coordinator": (
        {"sent": "superlink", "training": "app", "uploading": "gateway container"},
        {"sent": "app", "training": "gateway container", "uploading": "superlink"},
        {"sent": "gateway container", "training": "superlink", "uploading": "app"},
        {"training": "server container", "uploading": "runner"},
    ),
    "hospital": (
        {"sent": "runner", "uploading": "courier"},
        {"training": "runner"},
        {"sent": "courier", "training": "courier"},
        {"training": "runner container", "uploading": "courier container"},
    ),
}
"""What is killed at which point of round 1, 2, ... A container is killed with the one that watches over its processes;
the gateway is alone in its own."""
PLANS = [pytest.param(TABLE["coordinator"]), pytest.param(TABLE["hospital"], marks=pytest.mark.slow)]
Plan = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Target:
    """Something to kill.

    number: of the process in the container of a service; None of its first one, and so of the container.
    """

    stack: Stack
    service: str
    number: Callable[[], int | None] | None = None

    def process(self) -> int:
        """Its number on this machine; 0 if it is not there."""
        number = 1 if self.number is None else self.number()
        return self.stack.process(self.service, number) if number else 0

    def kill(self) -> float:
        """SIGKILL; the seconds until there is a successor."""
        wait_for(self.process, PATIENCE_SECONDS, self.service)
        before = self.process()
        os.kill(before, signal.SIGKILL)
        began = time.monotonic()
        self.stack.wait_until(lambda: self.process() not in (0, before), self.service, "a successor", PATIENCE_SECONDS)
        return time.monotonic() - began


def targets(made: Federation, coordinator: Coordinator, victim: Hospital) -> dict[str, Target]:
    """Whatever is killed, by name."""

    def app() -> int | None:
        holder = app_holder(made.run)
        return holder.pid if holder is not None and holder.alive else None

    def courier_process() -> int | None:
        number: int | None = site_status(victim.courier).get("processes", {}).get("courier", {}).get("pid")
        return number

    return {
        "superlink": Target(coordinator, "server", lambda: made.pid("superlink")),
        "app": Target(coordinator, "server", app),
        "gateway container": Target(coordinator, "gateway"),
        "server container": Target(coordinator, "server"),
        "runner": Target(victim, "runner", lambda: made.site_pid(VICTIM, "runner")),
        "courier": Target(victim, "courier", courier_process),
        "runner container": Target(victim, "runner"),
        "courier container": Target(victim, "courier"),
    }


class Rounds:
    """Takes the federation through its rounds, and kills at their points."""

    def __init__(self, made: Federation, line: Relay, killed: dict[str, Target]) -> None:
        self._made = made
        self._line = line
        self._targets = killed
        self._upload = initial_weights(plan_from_config(made.config), made.config.seed)[0].nbytes

    def hold(self, site: str, first: int) -> None:
        """Lets a site wait in the middle of its training in all rounds from this one on."""
        self._made.hold(site, *range(first, self._made.config.rounds + 1), 0)

    def see_through(self, number: int, plan: dict[str, str]) -> None:
        """One round, from its first task to its line in ``rounds.jsonl``."""
        made, line = self._made, self._line
        self._wait(lambda: any(event.round == number for event in made.said(RoundStarted)), f"round {number}")
        self._kill("sent", plan)
        if {"training", "uploading"} & plan.keys():
            self._wait(lambda: made.held_in(VICTIM) == number, f"training in round {number}")
        self._kill("training", plan)
        if "uploading" in plan:
            line.stall_after(self._upload // 2)
        self.hold(VICTIM, number + 1)
        if "uploading" in plan:
            self._wait(line.stalled.is_set, f"half an upload in round {number}")
            self._kill("uploading", plan)
            line.go_on()
        self._wait(lambda: made.answered(VICTIM, number), f"an answer in round {number}")
        self.hold(HELD, number + 1)
        self._wait(lambda: len(made.rounds()) >= number, f"the end of round {number}")

    def _kill(self, point: str, plan: dict[str, str]) -> None:
        if point in plan:
            print(f"{plan[point]} killed: another one after {self._targets[plan[point]].kill():.1f} s")

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        self._targets["superlink"].stack.wait_until(condition, "server", what, PATIENCE_SECONDS)


@pytest.mark.parametrize("plan", PLANS, ids=TABLE)
def test_killed_at_three_points_of_a_round(machine: Machine, tmp_path: Path, plan: Plan) -> None:
    address, last = own_address(), len(plan)
    settings = (f"network.address={address}", f"rounds={last}", "model.channels=[8, 16, 64]", "strategy.min_sites=2")
    made = Federation(tmp_path, (HELD, VICTIM), settings)
    with relay(made.port, address) as line:
        made.put_between(VICTIM, line.port)
        coordinator = Coordinator(machine, made)
        held, victim = (Hospital(machine, made, site, SCRIPTED) for site in (HELD, VICTIM))
        with removed_at_the_end(coordinator, held, victim):
            coordinator.start()
            made.run = coordinator.run
            rounds = Rounds(made, line, targets(made, coordinator, victim))
            for hospital, site in ((held, HELD), (victim, VICTIM)):
                rounds.hold(site, 1)
                hospital.approve()
            for hospital in (held, victim):
                hospital.compose("up", "-d")
            for number, killed in enumerate(plan, 1):
                rounds.see_through(number, killed)
            coordinator.wait_until(lambda: not coordinator.is_running("server"), "server", "the end", PATIENCE_SECONDS)

            check_record(made, last, tmp_path / "undisturbed")
