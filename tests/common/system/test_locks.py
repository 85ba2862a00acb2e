"""Locks between real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import FedvoxError
from common.system.locks import LockHeldError, is_locked, lock_file

REPOSITORY = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from common.system.locks import lock_file
with lock_file(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


@contextlib.contextmanager
def holder(path: Path, kind: str = "exclusive") -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_one_process_holds_it_until_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists(), "looking creates nothing"
    with holder(path) as other:
        assert is_locked(path)
        for seconds in (0, 0.15):
            with pytest.raises(LockHeldError, match="lock: another process"):
                lock_file(path, wait_seconds=seconds)
        assert other.stdin is not None and other.stdout is not None
        other.stdin.close()
        with lock_file(path, wait_seconds=60):
            assert is_locked(path)
        assert other.stdout.read() == "released\n"
    assert not is_locked(path)


@pytest.mark.parametrize("kind", ["exclusive", "shared"])
def test_a_killed_holder_holds_nothing(tmp_path: Path, kind: str) -> None:
    with holder(tmp_path / "lock", kind) as other:
        other.kill()
        with lock_file(tmp_path / "lock"):
            pass
        assert other.wait() < 0


def test_shared_locks_bear_each_other_but_no_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, "shared"), holder(path, "shared"):
        assert not is_locked(path)
        with lock_file(path, shared=True, wait_seconds=0), pytest.raises(LockHeldError):
            lock_file(path, wait_seconds=0)
    with holder(path), pytest.raises(LockHeldError):
        lock_file(path, shared=True, wait_seconds=0)


def test_a_child_does_not_inherit_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    with lock_file(tmp_path / "lock", wait_seconds=0):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
    try:
        assert child.poll() is None
        assert not is_locked(tmp_path / "lock")
    finally:
        child.communicate("\n")


def test_it_is_released_when_the_block_raises(tmp_path: Path) -> None:
    # Even by the error that says inside that a lock is held.
    with pytest.raises(BlockingIOError), lock_file(tmp_path / "lock"):
        raise BlockingIOError
    assert not is_locked(tmp_path / "lock")


def test_an_attempt_that_failed_leaves_nothing_open(tmp_path: Path) -> None:
    with lock_file(tmp_path / "lock"):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(LockHeldError):
            lock_file(tmp_path / "lock", wait_seconds=0)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_symbolic_link_is_refused_where_asked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="link") as error:
        lock_file(tmp_path / "link", flags=os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    assert error.value.errno == errno.ELOOP
    assert not (tmp_path / "target").exists()
    with lock_file(tmp_path / "link"):
        assert is_locked(tmp_path / "target")


def test_a_new_file_is_for_its_owner_and_a_folder_can_be_locked(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with lock_file(tmp_path / "lock") as descriptor:
            assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600
    finally:
        os.umask(before)
    with lock_file(tmp_path, flags=os.O_RDONLY | os.O_DIRECTORY), pytest.raises(LockHeldError):
        lock_file(tmp_path, flags=os.O_RDONLY | os.O_DIRECTORY, wait_seconds=0)


def test_what_cannot_be_opened_is_said_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock_file(tmp_path / "nowhere" / "lock")
    with pytest.raises(IsADirectoryError):
        lock_file(tmp_path)
    assert issubclass(LockHeldError, FedvoxError)
    assert not issubclass(LockHeldError, OSError), "a file that cannot be opened is another matter"
