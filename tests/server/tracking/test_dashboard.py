from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from client.site.metrics import SiteMetrics
from client.state_folder import AUDIT_FILE, StateFolder, write_json
from common.audit import AuditLog
from server.run_store.live_status import NetworkStatus, write_network_status
from server.tracking.prometheus import RunMetrics
from tests.server.tracking.growing_run import GrowingRun

REPOSITORY = Path(__file__).resolve().parents[3]
DASHBOARD = REPOSITORY / "deploy" / "examples" / "grafana-dashboard.json"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """All metrics of both sides by the names by which they are asked for; those of counters end with ``_total``."""
    folder = tmp_path_factory.mktemp("served")
    run = GrowingRun(folder / "run")
    run.lines[0]["sites"]["south"] |= {"status": "refused", "reason": "too-long"}
    sites = {"north": {"connected": True, "step": 3, "steps": 40, "status": None}}
    processes = {"gateway": {"state": "ready", "restarts": 2}}
    status = NetworkStatus(False, "", "", "", processes, sites, 1, {"north": {"expired": 1}})
    write_network_status(run.whole().path, status)
    state = StateFolder(folder / "state")
    with state.locked():
        write_json(state.status, {"role": "site", "processes": processes})
        AuditLog(state.path / AUDIT_FILE).append("sent", run="r", round=1, bytes=9, sha256="b", update="c")
        found = [*RunMetrics(run.path).collect(), *SiteMetrics(state).collect()]
    by_name = {f"{metric.name}_total" if metric.type == "counter" else metric.name: metric for metric in found}
    assert len(by_name) == len(found)
    return by_name


def targets() -> list[dict[str, str]]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_example_dashboard_asks_for_every_metric_that_is_served_and_no_other(served: dict[str, Metric]) -> None:
    assert {name for target in targets() for name in re.findall(r"fedvox_\w+", target["expr"])} == served.keys()


def test_the_example_dashboard_names_labels_that_are_there(served: dict[str, Metric]) -> None:
    for target in targets():
        for name in re.findall(r"fedvox_\w+", target["expr"]):
            there = {label for sample in served[name].samples for label in sample.labels} | {"instance"}
            assert {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])} <= there, target
        assert "[1m]" not in target["expr"], "a minute holds no two values at Prometheus' own interval"


def test_names_keep_to_the_conventions_of_prometheus(served: dict[str, Metric]) -> None:
    """What ``promtool check metrics`` asks, and that each name ends with its unit."""
    for name, metric in served.items():
        words = name.removesuffix("_total").split("_")
        assert re.fullmatch(r"fedvox_(server|client)(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.type == "counter"), name
        assert words[-1] not in ("count", "sum", "bucket", "info", "total"), name
        assert not {"gauge", "counter", "ms", "kb", "mb", "gb", "minutes", "hours", "percent"} & {*words}, name
        assert not {"seconds", "bytes"} & {*words[:-1]}, name
        assert metric.documentation
        labels = {label for sample in metric.samples for label in sample.labels}
        assert all(re.fullmatch("[a-z]+", label) for label in labels)
        assert not labels & {"le", "quantile", "job", "instance"}


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
