from __future__ import annotations

from typing import Any

from server.rounds.round_log import contributors


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
