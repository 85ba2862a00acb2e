"""A server's start that is refused leaves nothing behind, and the run folder has one owner."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.federation import FederationConfig
from server.cli.entry import main
from server.coordinator.startup import PREPARED
from server.provisioning.kits import provision
from server.run_store.locks import START_LOCK, only_start
from tests import tiny


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    values = {
        "strategy": {"min_sites": 1},
        "labels": {1: "ball"},
        "channels": ["t1"],
        "preprocessing": {"spacing": "keep"},
        "model": {"channels": [8, 16], "groups": 4, "patch_size": [16, 16, 16]},
        "network": {"address": "127.0.0.1", "sites": ["north", "south"]},
    }
    provision(FederationConfig.model_validate(tiny.federation().model_dump() | values), tmp_path / "kits")
    return tmp_path / "kits" / "server"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def start(kit: Path, run: Path, *arguments: str) -> int:
    return main(["start", "--kit", str(kit), "--run", str(run), *arguments])


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_port_that_is_taken(kit: Path, tmp_path: Path, taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    listen = ["--listen", f"127.0.0.1:{taken_port}"]
    assert start(kit, tmp_path / "runs" / "first", *listen) == 1
    assert f"cannot listen on 127.0.0.1:{taken_port}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    assert start(kit, tmp_path / "mine", *listen) == 1
    assert names(tmp_path / "mine") == set()


def test_a_kit_that_lacks_a_file(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("server.crt", "federation.yaml", "kit.yaml"):
        content = (kit / name).read_bytes()
        (kit / name).unlink()
        assert start(kit, tmp_path / "run") != 0
        assert name in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        (kit / name).write_bytes(content)


def test_a_folder_of_something_else(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    assert start(kit, mine) == 1
    assert "is not a run folder (it holds thesis.txt)" in capsys.readouterr().err
    assert names(mine) == {"thesis.txt"}
    assert start(kit, mine / "thesis.txt") == 1
    assert "thesis.txt" in capsys.readouterr().err


def test_a_run_with_an_owner(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with only_start(run):
        assert start(kit, run) == 1
        owner = f"process {os.getpid()} on {os.uname().nodename}, since 20"
        assert f"{run}: is running already ({owner}" in capsys.readouterr().err
        assert names(run) == {START_LOCK}


def test_what_a_killed_start_left_is_no_hindrance(
    kit: Path, tmp_path: Path, taken_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes as far as the port."""
    run = tmp_path / "run"
    for name in (START_LOCK, *PREPARED):
        path = run / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name in ("checkpoints", "logs") else path.write_text("")
        assert start(kit, run, "--listen", f"127.0.0.1:{taken_port}") == 1
        assert "cannot listen" in capsys.readouterr().err
