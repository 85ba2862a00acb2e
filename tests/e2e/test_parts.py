"""A federation whose parts run apart: proxy without SuperLink, SuperNode without scans, runner without network."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.site_state import StateFolder, site_status
from common.supervise import free_port
from tests.e2e.network_federation import (
    CLIENT,
    ENVIRONMENT,
    NICE,
    SERVER,
    Federation,
    assert_same_model,
    federation,
    simulated,
    wait_for,
)

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("nginx")]


class Parts:
    """One process of each kind per place, with nothing shared but a secret."""

    def __init__(self, made: Federation) -> None:
        self.made = made
        self.superlink, self.health = free_port(), free_port()
        self.secret = made.folder / "secret"
        self.secret.write_bytes(bytes(range(32)))

    def start_server(self) -> None:
        kit = str(self.made.kits / "server")
        apart = ["--no-proxy", "--superlink", f"127.0.0.1:{self.superlink}", "--health", f"127.0.0.1:{self.health}"]
        self.made._start("server", [*SERVER, "start", "--kit", kit, *apart])
        listen = ["--listen", f"127.0.0.1:{self.made.port}", "--superlink", f"127.0.0.1:{self.superlink}"]
        self.made._start("proxy", [*SERVER, "proxy", "--kit", kit, *listen])

    def start_site(self, site: str) -> None:
        kit, port = self.made.kits / "sites" / site, free_port()
        approve = ["--kit", str(self.runner_kit(site)), "--state", str(self.state(site, "runner").path)]
        assert self.run([*CLIENT, "approve", *approve, "--user", "test"])[0] == 0
        secret = ["--secret-file", str(self.secret)]
        listen = ["--listen", f"127.0.0.1:{port}", "--health", f"127.0.0.1:{free_port()}"]
        state = ["--kit", str(kit), "--state", str(self.state(site, "supernode").path)]
        self.made._start(f"{site}-supernode", [*CLIENT, "supernode", *state, *listen, *secret])
        data = ["--data", str(self.made.data(site)), "--ledger", str(self.made.folder / "ledger.jsonl"), "--no-cache"]
        supernode = ["--supernode", f"127.0.0.1:{port}", "--device", "cpu"]
        self.made._start(f"{site}-runner", [*CLIENT, "runner", *approve, *data, *supernode, *secret])

    def runner_kit(self, site: str) -> Path:
        kit = self.made.folder / "runner-kits" / site
        if not kit.exists():
            shutil.copytree(self.made.kits / "sites" / site, kit, ignore=shutil.ignore_patterns("node.*", "ca.crt"))
        return kit

    def state(self, site: str, part: str) -> StateFolder:
        return StateFolder(self.made.folder / "states" / site / part)

    def run(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [*NICE, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with federation(tmp_path_factory.mktemp("parts"), ("east", "north")) as made:
        started = Parts(made)
        started.start_server()
        started.start_site("east")
        yield started


def test_each_part_says_how_it_is(parts: Parts) -> None:
    wait_for(lambda: "connected to the server" in parts.made.log("east-supernode"), 120, "SuperNode")
    wait_for(lambda: "ready for tasks" in parts.made.log("east-runner"), 120, "a runner")
    supernode, runner = parts.state("east", "supernode"), parts.state("east", "runner")
    assert site_status(supernode)["connected"] and list(site_status(supernode)["processes"]) == ["supernode"]
    assert site_status(runner)["ready"] and list(site_status(runner)["processes"]) == ["runner"]
    for folder in (supernode, runner):
        assert parts.run([*CLIENT, "health", "--state", str(folder.path)]) == (0, "well\n")
    kit = str(parts.made.kits / "server")
    for which in (
        ["--superlink", f"127.0.0.1:{parts.health}"],
        ["--proxy", f"127.0.0.1:{parts.made.port}", "--kit", kit],
    ):
        assert parts.run([*SERVER, "health", *which]) == (0, "well\n")
    dead = ["--proxy", f"127.0.0.1:{free_port()}", "--kit", kit]
    assert parts.run([*SERVER, "health", *dead])[0] == 1
    status, text = parts.run([*CLIENT, "status", "--kit", str(parts.runner_kit("east")), "--state", str(runner.path)])
    assert status == 0 and "waiting for a task" in text and "ask the status of supernode" in text


def test_the_key_is_not_needed_where_the_scans_are(parts: Parts) -> None:
    assert "key:          is not here" in parts.made.log("east-runner")
    assert not list(parts.runner_kit("east").glob("node.*"))
    assert "data:" not in parts.made.log("east-supernode")


def test_the_parts_finish_a_federation_with_the_model_of_a_simulation(parts: Parts, tmp_path: Path) -> None:
    parts.start_site("north")
    parts.made.finish(300)
    assert_same_model(parts.made.run, simulated(parts.made, tmp_path / "run").path, 3)
    for site in ("east", "north"):
        command = ["--kit", str(parts.runner_kit(site)), "--state", str(parts.state(site, "runner").path)]
        status, text = parts.run([*CLIENT, "audit", *command, "--verify", "--json"])
        assert status == 0, text
        assert json.loads(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--no-proxy"], "belong together"),
        (["--superlink", "0.0.0.0:9091"], "belong together"),
        (["--no-proxy", "--superlink", "0.0.0.0:9091", "--listen", "0.0.0.0:9443"], "which --no-proxy leaves out"),
        (["--no-proxy", "--superlink", "10.1.2.3:9091"], "write 0.0.0.0 or 127.0.0.1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(parts: Parts, options: list[str], text: str) -> None:
    status, said = parts.run([*SERVER, "start", "--kit", str(parts.made.kits / "server"), *options])
    assert status == 2 and text in said


def test_supernode_does_not_start_without_a_secret(parts: Parts, tmp_path: Path) -> None:
    kit = str(parts.made.kits / "sites/east")
    options = ["--kit", kit, "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:1"]
    status, said = parts.run([*CLIENT, "supernode", *options, "--secret-file", str(tmp_path / "none")])
    assert status == 1 and "put right first: secret" in said
