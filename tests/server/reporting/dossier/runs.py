"""Run folders as a federation over a network leaves them, in miniature, for tests of the dossier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.audit import AuditLog
from common.protocol.messages import SiteInfo
from server.run_store.folder import RunFolder, RunState
from server.run_store.live_status import NetworkStatus, write_network_status
from server.run_store.site_reports import SiteReports
from tests.server.run_folder import round_line, write_json_lines, write_run_folder

SITES = ("north", "south", "west")
ROUNDS = 4
EPSILON = 2.5
DIGEST = "d"


def write_network_run(folder: Path, sites: Sequence[str] = SITES, private: bool = True) -> Path:
    """A finished run over a network, in which the last site was refused in round 2."""
    write_run_folder(folder, ROUNDS, sites)
    for name in ("partition.json", "validation.csv"):
        (folder / name).unlink()
    privacy = "privacy: {epsilon: 3, delta: 1.0e-5, validation: noised}\n" if private else ""
    with (folder / "federation.yaml").open("a", encoding="utf-8") as stream:
        stream.write(
            f"modality: MR\nnetwork: {json.dumps({'address': 'fed.example', 'port': 9443, 'sites': list(sites)})}\n"
        )
        stream.write(privacy)
    lines = [round_line(number, ROUNDS, sites) for number in range(1, ROUNDS + 2)]
    for line in lines:
        for part in line["sites"].values():
            part["epsilon"] = EPSILON * line["round"] / (ROUNDS + 1) if private else None
    lines[1]["sites"][sites[-1]] |= {"status": "refused", "reason": "norm-outlier"}
    write_json_lines(folder / "rounds.jsonl", lines)
    RunFolder(folder).commit(RunState(run="r", digest=DIGEST, started="now", round=ROUNDS, finished=True))
    started = {"time": "2026-01-05T09:00:00+00:00", "event": "started", "run": "r", "engine": "network"}
    write_json_lines(folder / "events.jsonl", [started, *(ready(site) for site in sites)])
    change_summary(folder, engine="network", device=None)
    reports = SiteReports(folder)
    for index, site in enumerate(sites[:-1]):
        heads = {"ledger_head": f"{index % 5}" * 64, "audit_head": f"{index % 5 + 5}" * 64}
        reports.note(SiteInfo(site, 1, 1, "0.1.0", "1.42.0", "2.13.0", "3.11.7", "cpu", "float32", **heads))
    log = AuditLog(folder / "audit.jsonl")
    for number in range(1, ROUNDS + 1):
        log.append("round_done", round=number)
    refused = {sites[0]: {"expired": 2}}
    write_network_status(folder, NetworkStatus(False, "now", "finished", "fed.example:9443", refused=refused))
    return folder


def ready(site: str) -> dict[str, Any]:
    """The event of a site that came, as ``server.rounds.roster`` writes it."""
    versions = {"fedvox": "0.1.0", "flwr": "1.41.0", "torch": f"2.12.0+{len(site)}", "python": "3.12.1"}
    return {"event": "site_ready", "site": site, "versions": versions}


def change_summary(folder: Path, **values: Any) -> None:
    """Replace values in a run's summary."""
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def write_consent(file: Path, site: str, digest: str = DIGEST, **decisions: Any) -> Path:
    """What ``fedvox-client review --json`` gives to a hospital, as far as the dossier reads it."""
    content = {"format": 1, "site": site, "digest": digest, "site_decisions": decisions}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file
