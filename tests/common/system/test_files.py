"""Files appear whole or not at all, however large they are."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common.errors import OutputError
from common.system.files import LARGE, write_atomically

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
