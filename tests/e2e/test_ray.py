"""Simulations on Ray, as a user starts them: on this machine, and on a cluster that runs already."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from common.config.federation import load_federation
from common.errors import ConfigError
from common.protocol.codec import Hello, SiteInfo, from_record, pack, to_record, unpack_answer
from common.protocol.messages import ErrorCode
from common.weights.store import FileStore
from server.cli import main as server
from server.run_store.folder import RunFolder
from server.simulation.engines import engine_ready
from server.simulation.partition import read_partition
from server.simulation.simulated_sites import SimulatedSites
from tests import tiny
from tests.e2e.commands import call

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
ray_grid = pytest.importorskip("server.simulation.ray_grid")
ray_workers = pytest.importorskip("server.simulation.ray_workers")
pytestmark = pytest.mark.network
START_SECONDS = 120


def simulate(folder: Path, name: str, *options: object) -> subprocess.CompletedProcess[str]:
    """With rounding that sites must remember, which they can only where they stay with one worker."""
    federation = tiny.write_federation(folder)
    command = [sys.executable, "-m", "server.cli", "simulate", federation, "--out", folder / name]
    command += ["--cache", folder / "cache", "--set", "transport.upload=int8", *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)


def scores(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    return [{name: site["validation_loss"] for name, site in line["sites"].items()} for line in lines]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    done = simulate(folder, "inline")
    assert done.returncode == 0, done.stderr
    return folder / "inline"


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head of its own."""
    folder = tmp_path_factory.mktemp("r")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--head", "--block", "--port=0", f"--ray-client-server-port={port}", "--num-cpus=2"]
    options += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    options += ["--object-store-memory=100000000"]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options]
    log = folder / "head.log"
    with log.open("w") as stream:
        head = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        finally:
            os.killpg(head.pid, signal.SIGKILL)


def test_several_workers_give_what_one_process_gives(inline: Path) -> None:
    done = simulate(inline.parent, "ray", "--engine", "ray")
    assert done.returncode == 0, done.stderr
    for ours, expected in zip(scores(inline.parent / "ray"), scores(inline), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)
    report = (inline.parent / "ray" / "report.html").read_text()
    assert "Ray workers" in report
    assert "A round at a site" in report


def test_a_cluster_that_runs_already_gives_the_same(inline: Path, cluster: str) -> None:
    done = simulate(inline.parent, "cluster", "--engine", "ray", "--ray-address", cluster)
    assert done.returncode == 0, done.stderr
    for ours, expected in zip(scores(inline.parent / "cluster"), scores(inline), strict=True):
        assert ours == pytest.approx(expected, rel=1e-4)


def test_an_address_without_a_cluster_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    done = simulate(tmp_path, "run", "--engine", "ray", "--ray-address", "127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:1: cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    with engine_ready("ray", None):
        yield


class Hospitals:
    """The sites, reached through a grid."""

    def __init__(self, sites: SimulatedSites, folder: Path, share: Any) -> None:
        self.nodes = {index + 1: {"partition-id": index, "num-partitions": 2} for index in range(2)}
        store = FileStore(folder)
        shared = ray_workers.Shared(folder, store.put([b"token"]), folder / "log")
        self.grid = ray_grid.RayGrid(self.nodes)
        self.digest = sites.config.digest()
        self.workers = ray_workers.start_workers(sites, self.grid.run.run_id, self.nodes, share, shared)
        self.grid.use({1: self.workers[0], 2: self.workers[-1]})

    def hello(self) -> list[Message]:
        question = to_record(pack(Hello("r1", self.digest)))
        asked = [self.grid.message(question, node, "query.hello") for node in self.nodes]
        replies = {reply.metadata.src_node_id: reply for reply in self.grid.send_and_receive(asked)}
        return [replies[node] for node in self.nodes]

    def names(self) -> list[str]:
        answers = [unpack_answer(from_record(reply.content)) for reply in self.hello()]
        return [answer.site for answer in answers if isinstance(answer, SiteInfo)]


@pytest.mark.usefixtures("on_ray")
def test_a_worker_that_dies_is_asked_again_and_without_it_the_others_go_on(
    sites: SimulatedSites, tmp_path: Path
) -> None:
    hospitals = Hospitals(sites, tmp_path, ray_workers.Share(0.5, 0.0))
    assert hospitals.names() == sites.names
    ray.kill(hospitals.workers[0], no_restart=False)
    assert hospitals.names() == sites.names
    ray.kill(hospitals.workers[0], no_restart=True)
    first, second = hospitals.hello()
    assert first.has_error()
    assert first.error.code == ErrorCode.INTERNAL
    assert second.has_content()
    assert ray_workers.largest_memory(hospitals.workers) is None


@pytest.mark.usefixtures("on_ray")
def test_without_room_for_a_worker_the_keys_are_named(sites: SimulatedSites, tmp_path: Path) -> None:
    too_much = ray_workers.Share(float((os.cpu_count() or 1) + 1), 0.0)
    with pytest.raises(ConfigError, match=r"lower simulation.cpus_per_site"):
        Hospitals(sites, tmp_path, too_much)


@pytest.mark.usefixtures("on_ray")
@pytest.mark.parametrize(("sites_at_once", "cpus", "expected"), [(64, 2.0, 2.0), (10_000, None, 1.0), (1, 0.25, 0.25)])
def test_what_the_file_says_goes_before_equal_parts(sites_at_once: int, cpus: float | None, expected: float) -> None:
    assert ray_workers.share_of(sites_at_once, cpus, None) == ray_workers.Share(expected, 0.0)
    assert ray_workers.share_of(sites_at_once, cpus, 0.25).gpus == 0.25


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> SimulatedSites:
    """Of a prepared run with two sites."""
    folder = tmp_path_factory.mktemp("run")
    federation = tiny.write_federation(folder)
    done = call(server, "simulate", federation, "--out", folder / "run", "--no-cache", "--set", "rounds=1")
    assert done.returncode == 0, done.stderr
    run = RunFolder(folder / "run")
    config = load_federation(run.path / "federation.yaml")
    partition = read_partition(run.path / "partition.json")
    return SimulatedSites(config, run.plan(), partition, run.path / "phantoms", None, "cpu")
