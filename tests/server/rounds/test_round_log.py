from __future__ import annotations

from typing import Any

from server.rounds.round_log import contributors, reasons


def line(number: int, phase: str, **sites: str) -> dict[str, Any]:
    return {"round": number, "phase": phase, "sites": {name: {"status": status} for name, status in sites.items()}}


def test_only_sites_whose_updates_were_counted_are_behind_a_model() -> None:
    rounds = [
        line(1, "train", east="ok", north="refused", west="missing"),
        line(2, "train", east="ok", north="ok", west="failed"),
        line(3, "train", east="ok", north="ok", west="ok"),
        line(4, "evaluate", south="ok"),
    ]
    assert contributors(rounds, 1) == ["east"]
    assert contributors(rounds, 2) == ["east", "north"]
    assert contributors(rounds, 3) == ["east", "north", "west"]
    assert contributors(rounds, 0) == []


def test_a_failed_round_is_told_by_the_codes_of_its_sites() -> None:
    def sites(*codes: str | None) -> dict[str, dict[str, str | None]]:
        return {f"site-{number}": {"reason": code} for number, code in enumerate(codes)}

    lost = {"round": 1, "sites": sites(*["non-finite-loss"] * 3)}
    assert reasons([lost]) == "non-finite-loss at 3 of 3 sites, round 1"
    mixed = {"round": 2, "sites": sites("memory", None, "deadline", "memory")}
    assert reasons([lost, mixed]) == "memory at 2 of 4 sites, deadline at 1 of 4 sites, round 2"
    assert reasons([{"round": 3, "sites": {}}]) == "too few sites took part, round 3"
    assert reasons([]) == "no round was recorded"
