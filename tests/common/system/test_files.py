"""Files appear whole or not at all, however large they are."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.errors import OutputError
from common.system.files import (
    LARGE,
    OWN_FILE,
    PRIVATE,
    new_folder,
    to_appear,
    write_atomically,
    write_in_turn,
)

SIZES = [0, 1, LARGE - 1, LARGE, LARGE + 1, LARGE + 4095, LARGE + 4096, LARGE + 2**22 + 17]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    cut = min(12345, size)
    file = tmp_path / "file"
    file.write_bytes(b"older")
    write_atomically(file, "head\n", content[:cut], memoryview(content)[cut:])
    assert file.read_bytes() == b"head\n" + content
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


MEMORY = Path("/dev/shm")  # noqa: S108 -- is where Linux has one


@pytest.mark.skipif(not MEMORY.is_dir(), reason="this system has no file system in memory")
def test_a_file_system_that_wants_its_cache_gets_it() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        content = os.urandom(LARGE + 3)
        write_atomically(Path(folder) / "file", content)
        assert (Path(folder) / "file").read_bytes() == content
        assert len(list(Path(folder).iterdir())) == 1


@pytest.mark.parametrize("size", [LARGE // 2, LARGE + 2**23])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, size: int) -> None:
    """The limit on the size of files stands for a disk that is full in the middle."""
    file = tmp_path / "file"
    file.write_bytes(b"older")
    program = (
        "import signal, sys; from pathlib import Path; from common.system.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"write_atomically(Path(sys.argv[1]), bytes({size}))"
    )
    limit = size - 2**20 + 512

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run([sys.executable, "-c", program, file], preexec_fn=bound, capture_output=True, text=True)
    assert "cannot be written" in done.stderr
    assert file.read_bytes() == b"older"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", bytes(LARGE))


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("durable", [True, False])
def test_a_private_file_is_private_whatever_the_umask_and_the_older_file(
    tmp_path: Path, size: int, durable: bool
) -> None:
    (tmp_path / "file").write_bytes(b"older")
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "file", bytes(size), mode=PRIVATE, durable=durable)
        write_atomically(tmp_path / "other", bytes(size), durable=durable)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o666
    assert (tmp_path / "file").read_bytes() == bytes(size)
    assert names(tmp_path) == ["file", "other"]


def test_only_what_is_durable_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    write_atomically(tmp_path / "file", b"content", durable=False)
    write_in_turn(tmp_path / "file", "content")
    assert not flushed
    write_atomically(tmp_path / "file", b"content")
    assert len(flushed) == 1


def test_a_file_appears_only_after_its_block(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with to_appear(file, "content"):
        assert not file.exists()
        [temporary] = tmp_path.iterdir()
        assert temporary.read_text() == "content"
        assert temporary.name.startswith(".file.") and temporary.suffix == ".part"
    assert file.read_text() == "content"
    with pytest.raises(ConnectionError), to_appear(file, "other"):
        raise ConnectionError("an error of the block stays what it is")
    assert file.read_text() == "content"
    assert names(tmp_path) == ["file"]


def test_what_to_do_is_said_as_asked(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError, match=r"/file: cannot be written: .*; free space or choose another folder"):
        write_atomically(tmp_path / "file", b"content")
    with pytest.raises(OutputError, match=r"; free space or restore its permissions"):
        write_atomically(tmp_path / "file", b"content", remedy=OWN_FILE)
    assert names(tmp_path) == ["file"]
    with pytest.raises(OutputError, match=r"/file: cannot be written: .*; free space or restore its permissions"):
        write_in_turn(tmp_path / "file", b"content")


def test_a_file_that_is_written_in_turn_leaves_one_temporary_file_at_most(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_text("left by a process that was killed")
    write_in_turn(tmp_path / "file", "first", b" and second")
    write_in_turn(tmp_path / "file", "third")
    assert (tmp_path / "file").read_text() == "third"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_only_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "above" / "folder"
    with new_folder(target) as part:
        (part / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    with pytest.raises(KeyError), new_folder(tmp_path / "second") as part:
        (part / "file").write_text("content")
        raise KeyError
    with pytest.raises(OutputError, match="second: cannot be written: No space left"), new_folder(tmp_path / "second"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match="folder: cannot be written"), new_folder(target):
        pass
    assert names(tmp_path) == ["above"]
    assert names(tmp_path / "above") == ["folder"]
