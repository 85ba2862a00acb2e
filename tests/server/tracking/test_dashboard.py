from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from client.site.metrics import SiteMetrics
from client.state_folder import StateFolder
from server.run_store.live_status import NetworkStatus, write_network_status
from server.tracking.prometheus import RunMetrics
from tests.server.tracking.growing_run import GrowingRun

REPOSITORY = Path(__file__).resolve().parents[3]
DASHBOARD = REPOSITORY / "deploy" / "examples" / "grafana-dashboard.json"


def names(metrics: Iterable[Metric]) -> set[str]:
    """As they are asked for: names of counters end with ``_total``."""
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in metrics}


def test_the_example_dashboard_asks_for_every_metric_that_is_served_and_no_other(tmp_path: Path) -> None:
    run = GrowingRun(tmp_path / "run").whole()
    write_network_status(run.path, NetworkStatus(False, "", "", ""))
    served = names(RunMetrics(run.path).collect()) | names(SiteMetrics(StateFolder(tmp_path / "state")).collect())
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for text in asked for name in re.findall(r"fedvox_\w+", text)} == served


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
