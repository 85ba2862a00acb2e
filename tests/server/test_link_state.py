from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from server.link_state import put_aside_if_damaged


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "superlink.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE pieces (content BLOB)")
    connection.executemany("INSERT INTO pieces VALUES (?)", [(bytes(1000),)] * 200)
    connection.commit()
    connection.close()
    return path


def test_a_sound_database_stays(database: Path) -> None:
    before = database.read_bytes()
    assert put_aside_if_damaged(database) is None
    assert database.read_bytes() == before


def test_no_database_is_none(tmp_path: Path) -> None:
    assert put_aside_if_damaged(tmp_path / "superlink.db") is None


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
def test_a_damaged_database_is_put_aside_with_what_belongs_to_it(database: Path, damage: str) -> None:
    content = bytearray(database.read_bytes())
    if damage == "header":
        content[:100] = bytes(100)
    elif damage == "middle":
        content[8192:40960] = b"\xff" * 32768
    else:
        content = content[: len(content) // 2]
    database.write_bytes(content)
    log = database.with_name("superlink.db-wal")
    log.write_bytes(b"")
    aside = put_aside_if_damaged(database)
    assert aside is not None
    assert aside.read_bytes() == content
    assert not database.exists()
    assert not log.exists()
