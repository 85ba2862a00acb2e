"""Beside Flower's own store, in real databases."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStore
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.task_identity import TaskIdentity

from server import object_files
from server.app_lock import OBJECTS
from server.object_files import LARGE, FileObjectStore

RUN = 7


@pytest.fixture
def message() -> Message:
    for name, value in {"run_id": RUN, "node_id": 1, "task_id": 1}.items():
        setattr(TaskIdentity, name, value)
    pieces = {str(index): Array("u1", (1,), "x", bytes([index]) * size) for index, size in enumerate((10, 3 * LARGE))}
    return Message(RecordDict({"task": ConfigRecord({"round": 1}), "weights": ArrayRecord(pieces)}), 1, "train")


@pytest.fixture(scope="module", autouse=True)
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, because that takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "superlink.db"
    SqlObjectStore(str(path)).initialize()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(autouse=True)
def database(empty_database: Path, tmp_path: Path) -> None:
    shutil.copy(empty_database, tmp_path)


def opened(kind: type[SqlObjectStore], path: Path) -> SqlObjectStore:
    store = kind(str(path / "superlink.db"))
    store.initialize()
    return store


def fill(store: ObjectStore, message: Message) -> dict[str, bytes]:
    store.preregister(RUN, get_object_tree(message))
    parts = {identity: part.deflate() for identity, part in get_all_nested_objects(message).items()}
    for identity, content in parts.items():
        store.put(identity, content)
    return parts


def files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / OBJECTS).iterdir())


@pytest.mark.parametrize("kind", [SqlObjectStore, FileObjectStore])
def test_what_is_put_is_got_and_goes_when_it_is_deleted(
    kind: type[SqlObjectStore], tmp_path: Path, message: Message
) -> None:
    store = opened(kind, tmp_path)
    store.preregister(RUN, get_object_tree(message))
    assert store.get(message.object_id) == b""
    parts = fill(store, message)
    assert {identity: store.get(identity) for identity in parts} == parts
    again = opened(kind, tmp_path)
    assert {identity: again.get(identity) for identity in parts} == parts, "after a restart"
    store.delete(message.object_id)
    assert [store.get(identity) for identity in parts] == [None] * len(parts)


def test_large_objects_lie_in_files_and_small_ones_do_not(tmp_path: Path, message: Message) -> None:
    parts = fill(opened(FileObjectStore, tmp_path), message)
    large = [identity for identity, content in parts.items() if len(content) >= LARGE]
    assert files(tmp_path) == sorted(large)
    assert len(large) == 1
    database = sum(file.stat().st_size for file in tmp_path.glob("superlink.db*"))
    other = tmp_path / "other"
    other.mkdir()
    fill(opened(SqlObjectStore, other), message)
    assert database < sum(file.stat().st_size for file in other.glob("superlink.db*"))


@pytest.mark.parametrize("kind", [SqlObjectStore, FileObjectStore])
@pytest.mark.parametrize("size", [10, 3 * LARGE])
def test_what_is_not_as_announced_is_refused(
    kind: type[SqlObjectStore], size: int, tmp_path: Path, message: Message
) -> None:
    store = opened(kind, tmp_path)
    array = Array("u1", (1,), "x", bytes(size))
    [(identity, chunk)] = [(child.object_id, child) for child in (array.children or {}).values()]
    with pytest.raises(NoObjectInStoreError):
        store.put(identity, chunk.deflate())
    store.preregister(RUN, get_object_tree(array))
    with pytest.raises(ValueError, match=identity[:20]):
        store.put(identity, chunk.deflate() + b"more")
    assert store.get(identity) == b""


def test_nothing_is_written_for_what_was_not_announced_or_is_something_else(tmp_path: Path) -> None:
    store = opened(FileObjectStore, tmp_path)
    assert isinstance(store, FileObjectStore)
    array = Array("u1", (1,), "x", bytes(3 * LARGE))
    [(identity, chunk)] = [(child.object_id, child) for child in (array.children or {}).values()]
    store.stage(identity, chunk.deflate())
    assert files(tmp_path) == []
    store.preregister(RUN, get_object_tree(array))
    store.stage(identity, chunk.deflate() + b"more")
    assert files(tmp_path) == []
    content = chunk.deflate()
    store.stage(identity, content)
    assert files(tmp_path) == [identity]
    assert store.get(identity) == b"", "it counts when it is put"
    store.put(identity, content)
    assert store.get(identity) == content


def test_content_that_looks_like_a_mark_is_refused(tmp_path: Path) -> None:
    import hashlib

    store = opened(FileObjectStore, tmp_path)
    identity = hashlib.sha256(object_files.MARK).hexdigest()
    with pytest.raises(Exception, match=r"format|head"):
        store.put(identity, object_files.MARK)


def test_a_file_that_is_gone_makes_its_object_unknown(tmp_path: Path, message: Message) -> None:
    store = opened(FileObjectStore, tmp_path)
    fill(store, message)
    [name] = files(tmp_path)
    (tmp_path / OBJECTS / name).unlink()
    assert store.get(name) is None


def put_piece(store: SqlObjectStore, fill: int, size: int = 3 * LARGE) -> tuple[str, bytes]:
    """Stores a piece of ``size`` equal bytes; its name and content."""
    array = Array("u1", (1,), "x", bytes([fill]) * size)
    store.preregister(RUN, get_object_tree(array))
    [(identity, chunk)] = [(child.object_id, child.deflate()) for child in (array.children or {}).values()]
    store.put(identity, chunk)
    return identity, chunk


def age(path: Path, *names: str) -> None:
    for name in names:
        os.utime(path / OBJECTS / name, (time.time() - 60,) * 2)


def test_files_without_an_object_are_written_over(
    tmp_path: Path, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_files, "SWEEP_SECONDS", 0.0)
    store = opened(FileObjectStore, tmp_path)
    parts = fill(store, message)
    [kept] = files(tmp_path)
    left = [f"{'a' * 64}.123.456", "f" * 64]
    for name in left:
        (tmp_path / OBJECTS / name).write_bytes(b"half" * LARGE)
    age(tmp_path, *left)
    store.put(kept, parts[kept])
    assert len(files(tmp_path)) == 2, "one is written over, the other waits"
    store.delete(message.object_id)
    age(tmp_path, kept)
    inodes = {file.stat().st_ino for file in (tmp_path / OBJECTS).iterdir()}
    first, second = put_piece(store, 5), put_piece(store, 6, LARGE)
    assert files(tmp_path) == sorted([first[0], second[0]])
    assert {file.stat().st_ino for file in (tmp_path / OBJECTS).iterdir()} == inodes
    for name, content in (first, second):
        assert store.get(name) == content
    assert store.get(kept) is None


def test_files_that_are_too_many_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_files, "SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(object_files, "MOST_SPARES", 3)
    store = opened(FileObjectStore, tmp_path)
    left = [str(number) * 64 for number in range(8)]
    for name in left:
        (tmp_path / OBJECTS / name).write_bytes(b"left")
    age(tmp_path, *left)
    name, content = put_piece(store, 1)
    assert len(files(tmp_path)) == 3
    assert store.get(name) == content


def test_threads_and_stores_do_not_take_the_same_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [opened(FileObjectStore, tmp_path) for _ in range(2)]
    for number in range(12):
        (tmp_path / OBJECTS / f"{number}.spare").write_bytes(bytes(5 * LARGE))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: put_piece(stores[number % 2], number), range(24)))
    assert all(stores[0].get(name) == content for name, content in found)
    assert files(tmp_path) == sorted(name for name, _ in found)
