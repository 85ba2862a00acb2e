"""Disks that are full: at a site, and at the server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.faults.conftest import Disk
from tests.e2e.network_federation import (
    CLIENT,
    NICE,
    Federation,
    assert_same_model,
    federation,
    simulated,
    wait_for,
)

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

Mount = Callable[[Path], Disk]
PATIENCE_SECONDS = 400
FULL = "west"
SETTINGS = (
    "rounds=7",
    "strategy={min_sites: 1, min_fraction: 0.5}",
    "network.round_deadline_seconds=150",
)


def test_a_site_with_little_room_does_not_start(tmp_path: Path, disk: Mount) -> None:
    with federation(tmp_path, ("east", "north")) as made:
        kit = made.kits / "sites/east"
        disk(kit / "state").shrink(64 * 2**20)
        command = [*NICE, *CLIENT, "preflight", "--kit", str(kit), "--data", str(made.data("east")), "--no-cache"]
        done = subprocess.run(command, env=made.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 1
        [line] = [line for line in done.stdout.splitlines() if line.split()[1:2] == ["disk:"]]
        assert line.startswith("error")
        assert "1.0 are needed" in line


def outcomes(made: Federation, site: str) -> list[str | None]:
    """What became of a site in every round; None where it was not asked."""
    return [line["sites"].get(site, {}).get("status") for line in made.rounds()]


def not_counted(made: Federation) -> list[tuple[int, str]]:
    """Round and site of every update that is not in the model; on a slow machine another one may come late."""
    return [
        (line["round"], site)
        for line in made.rounds()
        for site in made.sites
        if line["sites"].get(site, {}).get("status") != "ok" and line["phase"] == "train"
    ]


def takes_part_again(made: Federation, since: int) -> bool:
    """Whether the site has counted in a round after the third, or said who it is after so many events."""
    ready = [event["site"] for event in made.all_events()[since:] if event["event"] == "site_ready"]
    return FULL in ready or "ok" in outcomes(made, FULL)[3:]


def test_what_a_site_cannot_write_down_does_not_leave_and_the_others_go_on(tmp_path: Path, disk: Mount) -> None:
    with federation(tmp_path, ("east", FULL), SETTINGS) as made:
        state = disk(made.state(FULL).path)
        made.hold("east", 2)
        made.start(*made.sites, scripted=("east",))
        wait_for(lambda: made.held_in("east") == 2, PATIENCE_SECONDS, "round 2")
        state.fill()
        made.hold("east", 4)
        wait_for(lambda: made.held_in("east") == 4, PATIENCE_SECONDS, "round 4")
        assert "ok" in outcomes(made, FULL)[:2]
        assert outcomes(made, FULL)[2] != "ok", "it had room"
        print(outcomes(made, FULL), made.log(FULL)[-1500:])
        assert "internal error" not in made.log(FULL)
        assert made.processes[FULL].poll() is None, "it goes on by itself once there is room"
        before = len(made.all_events())
        state.free()
        made.hold("east", 6)
        wait_for(lambda: made.held_in("east") == 6, PATIENCE_SECONDS, "round 6")
        wait_for(lambda: takes_part_again(made, before), PATIENCE_SECONDS, "the site's return")
        made.hold("east", 0)
        made.finish(PATIENCE_SECONDS)
        # Round 4 began while there was no room.
        assert "ok" in outcomes(made, FULL)[4:7], outcomes(made, FULL)
        for line in made.rounds():
            assert {site["status"] for name, site in line["sites"].items() if name != FULL} == {"ok"}
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed", absent=not_counted(made)).path, 7)


def test_a_server_goes_on_when_there_is_room_again(tmp_path: Path, disk: Mount) -> None:
    with federation(tmp_path, ("east", "north"), ("rounds=2",)) as made:
        room = disk(made.run)
        made.hold("east", 2)
        made.start(*made.sites, scripted=("east",))
        wait_for(lambda: made.held_in("east") == 2, PATIENCE_SECONDS, "round 2")
        room.fill()
        made.hold("east", 0)
        server = made.processes["server"]
        wait_for(
            lambda: server.poll() is not None or "the server app ended" in made.log("server"),
            PATIENCE_SECONDS,
            "a server without room",
        )
        assert len(made.rounds()) == 1
        print(server.poll(), made.log("server")[-1500:])
        room.free()
        if server.poll() is not None:
            made.start_server()
        made.finish(PATIENCE_SECONDS)
        assert [line["round"] for line in made.rounds()] == [1, 2, 3]
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed", absent=not_counted(made)).path, 2)
