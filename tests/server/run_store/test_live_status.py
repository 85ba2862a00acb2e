"""What the status of a running federation says."""

from __future__ import annotations

import json
from pathlib import Path

from server.gateway.refusals import Refusals, RefusedError
from server.run_store.gateway_folder import REFUSED_FILE, GatewayFolder
from server.run_store.live_status import NetworkStatus, read_network_status, write_network_status


def test_what_a_site_tried_and_was_refused_is_shown(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path)
    refusals = Refusals(folder.path / REFUSED_FILE)
    for reason in ("path", "path", "signature"):
        refusals.count("north", RefusedError(403, reason), "GET", "/")
    refusals.count("(unknown)", RefusedError(401, "name"), "GET", "/")
    refusals.save()
    write_network_status(tmp_path, NetworkStatus(False, "", "round 1", "host:1", refused=folder.refused()))
    status = read_network_status(tmp_path)
    assert status is not None
    assert status.as_lines()[1:] == [
        "requests that the gateway refused:",
        "  (unknown): 1 x name",
        "  north: 2 x path, 1 x signature",
    ]
    assert NetworkStatus(True, "", "round 1", "host:1", refused=status.refused).as_lines()[-1] == status.as_lines()[-1]


def test_a_damaged_count_of_refusals_is_none(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path)
    folder.path.mkdir()
    for content in ([1], {"north": 3}, {"north": {"path": "x"}}):
        (folder.path / REFUSED_FILE).write_text(json.dumps(content))
        assert sum(sum(reasons.values()) for reasons in folder.refused().values()) == 0
