"""Simulated sites on Ray, as far as no Ray is needed; ``tests/e2e/test_ray.py`` has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import common
from common.errors import ConfigError
from common.weights.store import FileStore
from server.cli import main as server
from server.simulation.engines import engine_ready
from server.simulation.partition import SitePartition
from server.simulation.simulated_sites import SimulatedSites
from tests import tiny
from tests.e2e.commands import call


@pytest.fixture(scope="module")
def workers() -> Any:
    return pytest.importorskip("server.simulation.ray_workers", reason="the extra 'ray' is not installed")


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([5, 5], 2, [0, 1]),
        ([1, 9, 1, 1], 2, [1, 0, 1, 1]),
        ([3, 3, 3], 1, [0, 0, 0]),
        ([0] * 64, 2, [0, 1] * 32),
    ],
)
def test_workers_get_as_much_to_do_as_each_other(
    workers: Any, sizes: list[int], count: int, expected: list[int]
) -> None:
    assert workers.divide(sizes, count) == expected


@pytest.mark.parametrize(("gpus", "at_once", "part"), [(0, 4, 0.0), (1, 1, 1.0), (4, 2, 1.0), (2, 3, 0.5), (4, 6, 0.5)])
def test_gpus_are_divided_so_that_everybody_fits(workers: Any, gpus: int, at_once: int, part: float) -> None:
    assert workers.equal_part(gpus, at_once) == part
    machine = {"CPU": 16.0, "GPU": float(gpus)}
    assert workers.room_for(workers.Share(1.0, part), machine) >= at_once


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1.0, 0.0, 8), (3.0, 0.0, 2), (0.1, 0.4, 4), (1.0, 0.3, 6), (1.0, 2.0, 1), (1.0, 3.0, 0)]
)
def test_no_worker_gets_pieces_of_two_gpus(workers: Any, cpus: float, gpus: float, room: int) -> None:
    assert workers.room_for(workers.Share(cpus, gpus), {"CPU": 8.0, "GPU": 2.0}) == room


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [("data", "absent; put --data"), ("weights", "put --out"), ("version", "and the server 0.0"), ("nothing", None)],
)
def test_a_machine_that_cannot_work_says_why(workers: Any, tmp_path: Path, missing: str, complaint: str | None) -> None:
    partition = SitePartition(method="iid", seed=0, sites={})
    data = tmp_path / "absent" if missing == "data" else tmp_path
    sites = SimulatedSites(tiny.federation(), tiny.plan(), partition, data, None, "cpu")
    store = FileStore(tmp_path)
    token = store.put([b"token"])
    if missing == "weights":
        store.drop(token)
    worker = workers.Worker(sites, 1, {1: {"partition-id": 0}}, workers.Shared(tmp_path, token, tmp_path / "log"))
    said = worker.complaint("0.0" if missing == "version" else common.__version__)
    assert said is None if complaint is None else complaint in said


def test_an_address_is_only_for_ray() -> None:
    with pytest.raises(ConfigError, match="--ray-address"), engine_ready("inline", "ray://somewhere:10001"):
        pass


@pytest.mark.parametrize(("key", "value"), [("gpus_per_site", 1.5), ("gpus_per_site", -1), ("cpus_per_site", 0)])
def test_impossible_shares_are_refused(tmp_path: Path, key: str, value: float) -> None:
    federation = tiny.write_federation(tmp_path)
    done = call(server, "simulate", federation, "--out", tmp_path / "run", "--set", f"simulation.{key}={value}")
    assert done.returncode == 2
    assert f"simulation.{key}" in done.stderr
