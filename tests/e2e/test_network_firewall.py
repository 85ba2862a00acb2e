"""A hospital's firewall closes for a minute, in the middle of a training and in the middle of an upload."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.planning.resolve import plan_from_config
from server.rounds.initial_weights import initial_weights
from tests.e2e.network_federation import Federation, assert_same_model, federation, simulated, wait_for
from tests.e2e.relay import Relay, relay

pytestmark = [pytest.mark.network, pytest.mark.long]

CLOSED_SECONDS = 60
UNDERWAY_BYTES = 32 * 2**20
"""That may be lost: what the line, the relay and the gateway's two batches hold."""


def restarts(made: Federation, site: str) -> dict[str, int]:
    return {name: process["restarts"] for name, process in made.at_site(site)["processes"].items()}


def settled(between: Relay) -> None:
    """Waits until the site sends no more: what it may send without a confirmation is with the server."""
    seen: list[int] = []

    def quiet() -> bool:
        seen.append(between.sent)
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    wait_for(quiet, 60, "the end of what a site sends")


def test_a_minute_without_a_connection_costs_no_process_no_round_and_no_second_upload(tmp_path: Path) -> None:
    settings = ("rounds=2", "model.channels=[8, 16, 32, 896]", "training.local_steps=2")
    with federation(tmp_path, settings=settings) as made, relay(made.port) as north, relay(made.port) as west:
        weights, _ = initial_weights(plan_from_config(made.config), made.config.seed)
        upload = weights.nbytes
        assert upload > 2 * UNDERWAY_BYTES
        for site, between in (("north", north), ("west", west)):
            made.put_between(site, between.port)
            made.hold(site, 1)
        made.start(*made.sites, scripted=("north", "west"))
        wait_for(lambda: made.held_in("north") and made.held_in("west"), 120, "two sites in training")
        before = west.sent
        # Bytes arrive whose confirmation does not: the site cannot know what the server has.
        west.stall_after(upload // 2, answers=True)
        made.hold("west", 0)
        wait_for(west.stalled.is_set, 60, "an upload")
        settled(west)
        north.close()
        west.close(deaf=True)
        closed = time.monotonic()
        uploaded = west.sent - before
        made.hold("north", 0)
        # The test is about a minute; whatever the sites do in it, they must not end.
        wait_for(lambda: time.monotonic() - closed > CLOSED_SECONDS, 2 * CLOSED_SECONDS, "the minute")
        assert not made.rounds()
        assert {site: made.processes[site].poll() for site in made.sites} == dict.fromkeys(made.sites)
        reopened = west.sent
        north.open()
        west.open()
        wait_for(made.rounds, 120, "the first round")
        again = west.sent - reopened
        print(f"upload {upload}, before {uploaded}, after {again}; first round {made.rounds()[0]['seconds']} s")
        # Lost is at most what was on its way; what the server had confirmed does not travel again.
        assert again <= upload - uploaded + UNDERWAY_BYTES < upload
        assert {site: restarts(made, site) for site in made.sites} == {
            site: {"courier": 0, "runner": 0} for site in made.sites
        }
        made.finish(120)
        assert [line["round"] for line in made.rounds()] == [1, 2, 3]
        for line in made.rounds():
            assert {name: site["status"] for name, site in line["sites"].items()} == dict.fromkeys(made.sites, "ok")
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed").path, 2)
