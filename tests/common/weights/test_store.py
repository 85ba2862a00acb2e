"""Both stores of weights by the same promises, and what files alone can suffer."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OutputError
from common.weights.store import (
    HASH_BYTES,
    FileStore,
    MemoryStore,
    MissingWeightsError,
    Part,
    WeightStore,
    digest_of,
    map_file,
)

REPOSITORY = Path(__file__).resolve().parents[3]
NOBODY = "0" * 64


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WeightStore:
    return FileStore(tmp_path / "store") if request.param == "files" else MemoryStore()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_put_in_comes_out_under_its_digest(store: WeightStore) -> None:
    digest = store.put([b"some", b"", bytearray(b" wei"), memoryview(b"ghts")])
    assert digest == sha256(b"some weights")
    assert store.get(digest).tobytes() == b"some weights"
    assert digest_of(store.get(digest)) == digest


@given(parts=st.lists(st.binary(max_size=100), max_size=6))
def test_however_it_is_cut_it_is_the_same_content(parts: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    for store in (MemoryStore(), FileStore(tmp_path_factory.mktemp("store"))):
        whole = b"".join(parts)
        assert store.put(parts) == store.put([whole]) == sha256(whole)
        assert store.get(sha256(whole)).tobytes() == whole


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.arange(12, dtype="<f4").reshape(3, 4).T,
        np.arange(20, dtype=np.int8)[::3],
        np.arange(6, dtype="<f4")[1:4],
    ],
)
def test_arrays_are_stored_as_their_values(store: WeightStore, values: np.ndarray) -> None:
    content = store.get(store.put([values]))
    np.testing.assert_array_equal(content.view(values.dtype).reshape(values.shape), values)


def test_content_cannot_be_written_to(store: WeightStore) -> None:
    content = store.get(store.put([b"weights"]))
    assert not content.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        content[0] = 1


def test_content_does_not_change_with_what_it_was_made_of(store: WeightStore) -> None:
    values = np.ones(5, np.float32)
    digest = store.put([values])
    values[:] = 2
    assert digest_of(store.get(digest)) == digest


def test_what_is_not_there_is_missing(store: WeightStore) -> None:
    with pytest.raises(MissingWeightsError):
        store.get(NOBODY)
    digest = store.put([b"x"])
    store.drop(digest)
    store.drop(digest)
    store.drop(NOBODY)
    with pytest.raises(MissingWeightsError):
        store.get(digest)


@pytest.mark.parametrize("name", ["", "x", "../secret", NOBODY.upper().replace("0", "A"), NOBODY + "\n", "a/" + NOBODY])
def test_what_is_no_digest_is_missing(store: WeightStore, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    store.put([b"x"])
    with pytest.raises(MissingWeightsError):
        store.get(name)
    assert (tmp_path / "secret").read_text() == "mine"


def test_all_but_some_are_dropped(store: WeightStore) -> None:
    kept, dropped = store.put([b"kept"]), store.put([b"dropped"])
    store.keep({kept, NOBODY})
    assert store.get(kept).tobytes() == b"kept"
    with pytest.raises(MissingWeightsError):
        store.get(dropped)
    store.keep(set())
    with pytest.raises(MissingWeightsError):
        store.get(kept)


def test_the_same_content_twice_is_dropped_once(store: WeightStore) -> None:
    assert store.put([b"same"]) == store.put([b"same"])
    store.drop(sha256(b"same"))
    with pytest.raises(MissingWeightsError):
        store.get(sha256(b"same"))


def test_content_that_goes_wrong_on_the_way_leaves_nothing(store: WeightStore) -> None:
    def parts() -> Iterator[Part]:
        yield b"some"
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        store.put(parts())
    with pytest.raises(MissingWeightsError):
        store.get(sha256(b"some"))
    if isinstance(store, FileStore):
        assert files(store.folder) == set()


def test_large_content_is_hashed_to_its_end() -> None:
    content = np.zeros(2 * HASH_BYTES + 3, np.uint8)
    before = digest_of(content)
    assert before == sha256(content.tobytes())
    content[-1] = 1
    assert digest_of(content) == sha256(content.tobytes()) != before


# Files.


def test_a_file_is_named_by_its_digest_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "not" / "there")
    digest = store.put([b"weights"])
    assert files(store.folder) == {digest}
    assert store.path(digest).read_bytes() == b"weights"


@pytest.mark.parametrize("size", [0, 3, 5000, 20_000])
def test_dropped_content_is_written_over_and_cut_to_its_size(tmp_path: Path, size: int) -> None:
    store = FileStore(tmp_path)
    first = store.put([b"x" * 10_000])
    number = store.path(first).stat().st_ino
    store.drop(first)
    content = os.urandom(size)
    second = store.put([content])
    assert store.path(second).stat().st_ino == number
    assert store.path(second).read_bytes() == content
    assert files(tmp_path) == {second}


def test_a_spare_file_is_no_content(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    digest = store.put([b"x"])
    store.drop(digest)
    assert len(files(tmp_path)) == 1
    with pytest.raises(MissingWeightsError):
        store.get(digest)
    store.keep({digest})
    with pytest.raises(MissingWeightsError):
        store.get(digest)


@pytest.mark.parametrize("name", [f".{'ab' * 8}.part", f".{NOBODY}.part", "notes.txt"])
def test_what_was_left_half_written_is_never_taken_and_goes_with_the_next_round(tmp_path: Path, name: str) -> None:
    store = FileStore(tmp_path)
    kept = store.put([b"kept"])
    (tmp_path / name).write_bytes(b"half of it")
    with pytest.raises(MissingWeightsError):
        store.get(sha256(b"half of it"))
    store.keep({kept})
    assert not (tmp_path / name).exists()
    assert store.verified(kept).tobytes() == b"kept"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


TAMPERED: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
    "empty": lambda file: os.truncate(file, 0),
    "another": lambda file: file.write_bytes(os.urandom(100_000)),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_file_that_was_changed_is_refused_by_whoever_verifies_it(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    store = FileStore(tmp_path)
    digest = store.put([bytes(100_000)])
    assert store.verified(digest).size == 100_000
    change(store.path(digest))
    with pytest.raises(MissingWeightsError, match="changed or damaged"):
        store.verified(digest)


def test_a_file_is_mapped_and_not_loaded(tmp_path: Path) -> None:
    """256 MB that were never written to: whoever loads them needs as much memory."""
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(2**28)
    before = _anonymous_bytes()
    content = map_file(file)
    assert content.size == 2**28
    assert content[:: 2**12].sum() == 0
    assert _anonymous_bytes() - before < 2**25


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def test_of_a_file_the_rest_is_mapped_from_any_byte_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(200)) * 50)
    for offset in (0, 1, 77, 4096, 5001, 9999, 10_000):
        assert map_file(tmp_path / "file", offset).tobytes() == (bytes(range(200)) * 50)[offset:]
    with pytest.raises(MissingWeightsError):
        map_file(tmp_path / "file", 10_001)
    with pytest.raises(MissingWeightsError):
        map_file(tmp_path)
    with pytest.raises(MissingWeightsError):
        map_file(tmp_path / "nothing")


def _put_many(folder: Path, first: int) -> None:
    """Puts and drops content that other processes put and drop too."""
    store = FileStore(folder)
    for index in range(first, first + 60):
        content = _content(index)
        assert store.put([content[:7], content[7:]]) == sha256(content)
        if index % 3 == 0:
            store.drop(sha256(content))


def _content(index: int) -> bytes:
    return f"{index} ".encode() * (1 + 97 * (index % 5))


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_put_many, args=(tmp_path, first)) for first in (0, 30, 60)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store, there = FileStore(tmp_path), 0
    for name in files(tmp_path) - {".spare"}:
        assert store.verified(name).size
        there += 1
    assert there >= sum(1 for index in range(120) if index % 3)


KILLED_WHILE_IT_WRITES = """
import os, signal, sys
from pathlib import Path
from common.weights.store import FileStore

def parts():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)

FileStore(Path(sys.argv[1])).put(parts())
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_content(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_IT_WRITES, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    assert len(files(tmp_path)) == 1
    store = FileStore(tmp_path)
    with pytest.raises(MissingWeightsError):
        store.get(sha256(b"half"))
    store.keep(set())
    assert store.verified(store.put([b"whole"])).tobytes() == b"whole"
    assert files(tmp_path) == {sha256(b"whole")}


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond 100 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path, full_disk: None) -> None:
    store = FileStore(tmp_path)
    small = store.put([bytes(1000)])
    with pytest.raises(OutputError, match=f"{tmp_path}.*free space"):
        store.put([bytes(60_000), bytes(60_000)])
    assert files(tmp_path) == {small}
    assert store.verified(small).size == 1000


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/store"):
        FileStore(tmp_path / "file" / "store").put([b"x"])


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "nothing")
    store.keep(set())
    store.drop(NOBODY)
    with pytest.raises(MissingWeightsError):
        store.get(NOBODY)
    assert not store.folder.exists()
