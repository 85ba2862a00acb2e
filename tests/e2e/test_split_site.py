"""A federation whose halves run apart: gateway beside its server, courier without scans, runner without a network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.state_folder import StateFolder, site_status
from common.system.supervisor import free_port
from tests.e2e.network_federation import (
    CLIENT,
    NICE,
    SERVER,
    Federation,
    assert_same_model,
    federation,
    simulated,
    wait_for,
)

pytestmark = pytest.mark.network


class Halves:
    """One process of each kind per place; courier and runner share one folder and nothing else."""

    def __init__(self, made: Federation) -> None:
        self.made = made
        self.health = free_port()

    def start_server(self) -> None:
        kit = ["--kit", str(self.made.kits / "server")]
        apart = ["--without-gateway", "--health", f"127.0.0.1:{self.health}"]
        self.made._start("server", [*SERVER, "start", *kit, *apart])
        gateway = ["--run", str(self.made.run), "--listen", f"127.0.0.1:{self.made.port}"]
        self.made._start("gateway", [*SERVER, "gateway", *kit, *gateway])

    def start_site(self, site: str) -> None:
        kit, shared = self.made.kits / "sites" / site, ["--shared", str(self.made.folder / "shared" / site)]
        runner = ["--kit", str(self.runner_kit(site)), "--state", str(self.state(site, "runner").path)]
        assert self.run([*CLIENT, "approve", *runner, "--user", "test"])[0] == 0
        courier = ["--kit", str(kit), "--state", str(self.state(site, "courier").path)]
        self.made._start(f"{site}-courier", [*CLIENT, "courier", *courier, *shared])
        data = ["--data", str(self.made.data(site)), "--ledger", str(self.made.folder / "ledger.jsonl"), "--no-cache"]
        self.made._start(f"{site}-runner", [*CLIENT, "runner", *runner, *data, *shared, "--device", "cpu"])

    def runner_kit(self, site: str) -> Path:
        kit = self.made.folder / "runner-kits" / site
        if not kit.exists():
            shutil.copytree(self.made.kits / "sites" / site, kit, ignore=shutil.ignore_patterns("site.*", "ca.crt"))
        return kit

    def state(self, site: str, half: str) -> StateFolder:
        return StateFolder(self.made.folder / "states" / site / half)

    def run(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [*NICE, *command], env=self.made.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Halves]:
    with federation(tmp_path_factory.mktemp("halves"), ("east", "north")) as made:
        started = Halves(made)
        started.start_server()
        started.start_site("east")
        yield started


def test_each_half_says_how_it_is(halves: Halves) -> None:
    wait_for(lambda: "connected to the server" in halves.made.log("east-courier"), 120, "a courier")
    wait_for(lambda: "ready for tasks" in halves.made.log("east-runner"), 120, "a runner")
    courier, runner = halves.state("east", "courier"), halves.state("east", "runner")
    assert site_status(courier)["connected"] and list(site_status(courier)["processes"]) == ["courier"]
    assert site_status(runner)["ready"] and list(site_status(runner)["processes"]) == ["runner"]
    for folder in (courier, runner):
        assert halves.run([*CLIENT, "health", "--state", str(folder.path)])[0] == 0
    for which in (["--superlink", f"127.0.0.1:{halves.health}"], ["--gateway", f"127.0.0.1:{halves.made.port}"]):
        # The gateway is there before SuperLink.
        wait_for(lambda which=which: halves.run([*SERVER, "health", *which]) == (0, "serving\n"), 60, "an answer")
    assert halves.run([*SERVER, "health", "--gateway", f"127.0.0.1:{free_port()}"])[0] == 1
    status, text = halves.run([*CLIENT, "status", "--kit", str(halves.runner_kit("east")), "--state", str(runner.path)])
    assert status == 0 and "waiting for a task" in text


def test_the_key_is_not_needed_where_the_scans_are(halves: Halves) -> None:
    assert not list(halves.runner_kit("east").glob("site.*"))
    assert "data:" not in halves.made.log("east-courier")


def test_the_halves_finish_a_federation_with_the_model_of_a_simulation(halves: Halves, tmp_path: Path) -> None:
    halves.start_site("north")
    halves.made.finish(300)
    assert_same_model(halves.made.run, simulated(halves.made, tmp_path / "run").path, 3)
    for site in ("east", "north"):
        command = ["--kit", str(halves.runner_kit(site)), "--state", str(halves.state(site, "runner").path)]
        status, text = halves.run([*CLIENT, "audit", *command, "--verify", "--json"])
        assert status == 0, text
        assert json.loads(text)


def test_options_that_do_not_go_together_are_refused(halves: Halves) -> None:
    options = ["--without-gateway", "--listen", "0.0.0.0:9443"]
    status, said = halves.run([*SERVER, "start", "--kit", str(halves.made.kits / "server"), *options])
    assert status == 2 and "has no effect with --without-gateway" in said
