from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from common.errors import OutputError
from server.coordinator.startup import (
    Listen,
    flower_processes,
    forget_messages,
    gateway_process,
    make_run_folder,
    put_damaged_database_aside,
)
from server.run_store.gateway_folder import GatewayFolder
from server.run_store.locks import DATABASE, RUN_VARIABLE, UPDATES


def test_a_new_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Sites' updates and scores lie in it, and the token of the server app."""
    run = tmp_path / "runs" / "first"
    make_run_folder(run)
    assert run.stat().st_mode & 0o077 == 0
    run.chmod(0o750)
    make_run_folder(run)
    assert run.stat().st_mode & 0o777 == 0o750, "somebody wanted it so"


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        make_run_folder(tmp_path)


def test_of_a_run_that_is_over_no_sites_update_stays(tmp_path: Path) -> None:
    gateway = GatewayFolder(tmp_path)
    for path in (
        gateway.updates("north") / ("ab" * 32),
        gateway.updates("north") / ".spare",
        gateway.path / "models" / ("cd" * 32),
        tmp_path / UPDATES / "note.json",
        tmp_path / DATABASE,
        tmp_path / f"{DATABASE}-wal",
        tmp_path / "checkpoints" / "round-1",
        tmp_path / "state.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    forget_messages(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"round-1", "state.json"}
    forget_messages(tmp_path)


def test_no_secret_stands_on_a_command_line_and_superlink_is_reached_from_here_alone(tmp_path: Path) -> None:
    run, kit = tmp_path / "run", tmp_path / "kit"
    make_run_folder(run)
    superlink, superexec = flower_processes(run, 39_123)
    gateway = gateway_process(run, kit, Listen("192.0.2.1", 9443))
    secret = (run / "secret").read_text()
    assert len(secret) == 64
    assert (run / "secret").stat().st_mode & 0o077 == 0
    for child in (superlink, superexec, gateway):
        assert secret not in " ".join([*child.command, *child.env.values()])
        assert child.env[RUN_VARIABLE] == str(run)
        assert child.env["FLWR_TELEMETRY_ENABLED"] == "0"
    said = superlink.command
    assert said[said.index("--host") + 1] == "127.0.0.1"
    assert said[said.index("--port") + 1] == "39123"
    assert "127.0.0.1:39123" in superexec.command
    assert superexec.after == ("superlink",)
    assert "192.0.2.1:9443" in gateway.command
    assert flower_processes(run, 39_123)[0].command == said
    assert (run / "secret").read_text() != secret, "every start has its own"


@pytest.mark.parametrize("damage", [None, 0, 20, 4096])
def test_a_damaged_database_is_put_aside_and_a_whole_one_is_not(tmp_path: Path, damage: int | None) -> None:
    file, told = tmp_path / DATABASE, []
    put_damaged_database_aside(tmp_path, told.append)
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE node (name TEXT)")
        database.executemany("INSERT INTO node VALUES (?)", [("north" * 100,)] * 100)
        database.commit()
    content = bytearray(file.read_bytes())
    if damage is not None:
        content[damage : damage + 3000] = b"\x07" * 3000
        file.write_bytes(content)
    put_damaged_database_aside(tmp_path, told.append)
    assert file.exists() == (damage is None) == (not told)
    assert damage is None or (tmp_path / f"{DATABASE}.damaged").read_bytes() == content
