"""A folder has one owner, and a refused start leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import FedvoxError, OutputError
from common.system.locks import is_locked
from common.system.ownership import owned

HOLDER = """
import sys
from pathlib import Path
from common.errors import FedvoxError
from common.system.ownership import owned
with owned(Path(sys.argv[1]), "lock", FedvoxError):
    print("held", flush=True)
    sys.stdin.read()
"""


class RefusedError(Exception):
    """Why a start was refused."""


def refused(folder: Path, *names: str, keep: bool = False) -> None:
    with pytest.raises(RefusedError), owned(folder, "lock", FedvoxError, {"made", "folder"}) as claim:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
        if keep:
            claim.keep()
        raise RefusedError


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_second_owner_is_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder), "--resume"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(FedvoxError) as caught, owned(folder, "lock", FedvoxError):
            pytest.fail("two owners")
        said = str(caught.value)
        assert f"process {first.pid} on {os.uname().nodename}, since 20" in said
        assert said.endswith("--resume")
        first.kill()
    with owned(folder, "lock", FedvoxError):
        assert is_locked(folder / "lock")
    assert names(folder) == {"lock"}


def test_a_refused_start_leaves_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "runs" / "deep" / "first", "made", "folder/file")
    assert not list(tmp_path.iterdir())


def test_a_refused_start_leaves_what_was_there_and_what_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "folder").mkdir()
    refused(folder, "made", "folder/file", "of-another-process")
    assert names(folder) == {"folder", "folder/file", "of-another-process"}


def test_what_is_kept_stays(tmp_path: Path) -> None:
    refused(tmp_path / "run", "made", keep=True)
    assert names(tmp_path) == {"run", "run/made", "run/lock"}


def test_what_a_killed_start_left_goes_with_the_next_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    with pytest.raises(RefusedError), owned(tmp_path, "lock", FedvoxError, {"folder"}) as claim:
        claim.clear("folder")
        claim.clear("missing")
        (tmp_path / "folder").mkdir()
        raise RefusedError
    assert not names(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/run", "link"])
def test_a_place_where_no_folder_can_be_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at-all")
    before = names(tmp_path)
    problem = pytest.raises(OutputError, match=rf"{place}: cannot be made: .*; choose another folder")
    with problem, owned(tmp_path / place, "lock", FedvoxError):
        pytest.fail("made")
    assert names(tmp_path) == before


def test_a_lock_that_leads_nowhere_is_no_endless_loop(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(FedvoxError), owned(tmp_path, "lock", FedvoxError):
        pytest.fail("locked")


def test_a_folder_that_vanishes_and_comes_back_is_owned_once(tmp_path: Path) -> None:
    """Refused starts of several processes at once: whoever gets in alone sees a folder that exists."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom common.errors import FedvoxError\n"
        "from common.system.ownership import owned\n"
        "for _ in range(100):\n"
        "    try:\n"
        "        with owned(Path(sys.argv[1]), 'lock', FedvoxError, {'made'}):\n"
        "            made = Path(sys.argv[1]) / 'made'\n"
        "            assert not made.exists()\n"
        "            made.touch()\n"
        "            raise KeyError\n"
        "    except (KeyError, FedvoxError): pass\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "runs" / "run")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert not (tmp_path / "runs" / "run" / "made").exists()
