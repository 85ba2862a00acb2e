"""A hospital at the end of a bad line: long and lossy, or narrow."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.planning.resolve import plan_from_config
from server.rounds.initial_weights import initial_weights
from tests.deploy.faults.conftest import SERVER_ADDRESS, Line
from tests.e2e.network_federation import Federation, assert_same_model, federation, simulated

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

FAR = "west"
"""The site at the other end of the line; the other one is beside the server."""
SITES = ("east", FAR)


def finish_over(line: Line, made: Federation) -> None:
    """Runs a federation to its end; nobody may be left out, and no process started again."""
    made.within = {"server": line.server, "east": line.server, FAR: line.site}
    made.start(*made.sites)
    made.finish(600)
    for entry in made.rounds():
        assert {name: site["status"] for name, site in entry["sites"].items()} == dict.fromkeys(made.sites, "ok")
    restarts = {name: process["restarts"] for name, process in made.at_site(FAR)["processes"].items()}
    assert set(restarts.values()) == {0}


def test_two_percent_loss_and_a_tenth_of_a_second_each_way_change_nothing(tmp_path: Path, line: Line) -> None:
    line.open(delay=0.1, loss=0.02)
    settings = (f"network.address={SERVER_ADDRESS}", "rounds=2", "model.channels=[8, 16, 128]")
    with federation(tmp_path, SITES, settings) as made:
        finish_over(line, made)
        print([(entry["round"], entry["seconds"]) for entry in made.rounds()])
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed").path, 2)


def test_ten_megabits_are_enough_for_a_site_with_patience(tmp_path: Path, line: Line) -> None:
    bits_per_second = 10e6
    line.open(delay=0.01, rate=bits_per_second)
    settings = (f"network.address={SERVER_ADDRESS}", "rounds=2", "model.channels=[8, 16, 32, 256]")
    with federation(tmp_path, SITES, settings) as made:
        weights, _ = initial_weights(plan_from_config(made.config), made.config.seed)
        finish_over(line, made)
        print(weights.nbytes, [(entry["round"], entry["seconds"]) for entry in made.rounds()])
        # Down and up again: less time than the line needs would mean that this was no narrow line.
        assert all(entry["seconds"] > 2 * 8 * weights.nbytes / bits_per_second for entry in made.rounds()[:2])
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed").path, 2)
