"""What a site says while it is kept alive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.site.start import SiteOptions, runner_process
from client.site.supervision import Upkeep
from client.state_folder import StateFolder, site_status
from common.errors import OutputError
from common.system.supervisor import Child, GaveUpError

FULL = Path("/dev/full")
"""Whatever is written there meets a full disk."""


class Listener:
    """Hears what a site says, and stops it at a line that begins with ``last``."""

    def __init__(self, last: str) -> None:
        self.lines: list[str] = []
        self._last = last

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if line.startswith(self._last):
            raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    made = StateFolder(tmp_path / "state")
    with made.locked():
        yield made


def processes(folder: StateFolder, command: str) -> list[Child]:
    return [Child("runner", ["sh", "-c", command], dict(os.environ), folder.logs / "runner.log")]


def test_a_full_disk_is_named_once_and_does_not_end_a_site(folder: StateFolder) -> None:
    status = folder.path / ".status.json.part"
    status.symlink_to(FULL)
    said = Listener("runner ended with status 3; starting again in 2 s")
    Upkeep(folder, processes(folder, "exit 3"), "runner", "ready", said).run()
    [told] = [line for line in said.lines if "No space" in line]
    assert told == f"{folder.status}: cannot be written: No space left on device; free space or restore its permissions"
    assert any(line.startswith("runner ended with status 3; starting again in 1 s") for line in said.lines)


def test_a_site_says_how_it_is_once_there_is_room_again(folder: StateFolder) -> None:
    status = folder.path / ".status.json.part"
    status.symlink_to(FULL)

    class MakesRoom(Listener):
        def __call__(self, line: str) -> None:
            status.unlink(missing_ok=True)
            super().__call__(line)

    said = MakesRoom("ready")
    says = '{"pid": %s, "state": "waiting"}'
    write = f"printf '{says}' $$ >{folder.runner}; sleep 60"
    Upkeep(folder, processes(folder, write), "runner", "ready", said).run()
    assert site_status(folder)["processes"]["runner"]["state"] == "stopped"
    assert [line.partition(":")[0] for line in said.lines] == [str(folder.status), "ready", "stopping"]


def test_what_a_restart_cannot_help_is_given_up_with_its_last_line(folder: StateFolder) -> None:
    options = SiteOptions(folder.path, folder.path, folder.path, folder.path, None)
    child = replace(runner_process(options, folder), command=["sh", "-c", "echo plan.json: was changed; exit 2"])
    with pytest.raises(GaveUpError, match=r"3 times with status 2: plan\.json: was changed") as error:
        Upkeep(folder, [child], "runner", "ready", Listener("never")).run()
    assert error.value.exit_status == 2


def test_a_log_that_cannot_be_written_does_not_end_a_site(folder: StateFolder) -> None:
    (folder.logs / "start.log").symlink_to(FULL)
    said = Listener("runner ended with status 3")
    Upkeep(folder, processes(folder, "exit 3"), "runner", "ready", said).run()
    assert f"{folder.logs / 'start.log'}: cannot be written: No space left on device" in said.lines[0]


def test_what_cannot_be_started_for_want_of_room_is_named(folder: StateFolder) -> None:
    (folder.logs / "runner.log").mkdir()
    with pytest.raises(OutputError, match=r"runner.log: cannot be written: Is a directory; free space"):
        Upkeep(folder, processes(folder, "exit 3"), "runner", "ready", print).run()
