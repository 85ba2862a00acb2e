"""Runs of a federation for pages: one over a network, with a site in quarantine and odd names everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.protocol.codec import Refusal
from server.run_store.folder import RunFolder
from server.run_store.live_status import NetworkStatus, write_network_status
from tests.server.run_folder import SITES, round_line, write_json_lines, write_run_folder

PRIVACY = "privacy: {epsilon: 8.0, delta: 0.00001, sample_rate: 0.1, max_grad_norm: 1.0}\n"


def write_live_run(folder: Path, rounds: int = 6, sites: Sequence[str] = tuple(SITES), quarantined: str = "") -> Path:
    """A run over a network that has finished ``rounds`` of its rounds, private, with everything that a page shows."""
    write_run_folder(folder, rounds, sites)
    (folder / "summary.json").unlink()
    (folder / "federation.yaml").write_text(
        f"name: hippocampus\nrounds: {2 * rounds}\nseed: 0\n{PRIVACY}", encoding="utf-8"
    )
    write_json_lines(folder / "rounds.jsonl", [_private(round_line(n, rounds, sites), n) for n in range(1, rounds + 1)])
    state = RunFolder(folder).load_state()
    assert state is not None
    state.finished, state.rounds_bytes, state.digests = False, 0, {}
    quarantined = quarantined or sites[-1]
    state.quarantine = {quarantined: Refusal.PATIENTS_CHANGED}
    state.alarms = {f"quarantine {quarantined}": f"{quarantined} is in quarantine: it declared other patients."}
    state.best_round, state.best_mean_dice = rounds, 0.871
    RunFolder(folder).commit(state)
    write_network_status(folder, network_status(sites, rounds + 1))
    (folder / "report.html").write_text("<!DOCTYPE html><title>report</title>", encoding="utf-8")
    return folder


def network_status(sites: Sequence[str], number: int, step: int = 17) -> NetworkStatus:
    about: dict[str, dict[str, Any]] = {
        name: {"connected": index != 1, "step": step, "steps": 40, "status": "ok" if index == 2 else None}
        for index, name in enumerate(sites)
    }
    if len(sites) > 1:
        about[sites[1]]["seen"] = "2026-01-05T09:07:37+00:00"
    return NetworkStatus(
        running=True,
        written="",
        doing=f"round {number} of 12",
        endpoint="fed.example:9443",
        processes={"superlink": {"state": "ready"}, "gateway": {"state": "ready", "restarts": 2}},
        sites=about,
        refused={sites[0]: {"too many requests": 3}, "(unknown)": {"no certificate": 7}},
    )


def _private(line: dict[str, Any], number: int) -> dict[str, Any]:
    for index, part in enumerate(line["sites"].values()):
        part["epsilon"] = 0.4 * number + 0.05 * index
        if number == 3 and index == 1:
            part |= {"status": "refused", "reason": "unusual length"}
    return line
