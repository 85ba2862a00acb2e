"""What a site says while it is kept alive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.cli.entry import main
from client.site.preflight_item import Item
from client.site.start import SiteOptions, runner_process
from client.site.supervision import PreflightError, Upkeep, require_preflight
from client.state_folder import AlreadyRunningError, StateFolder, site_status
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


def refused_start(state: Path) -> None:
    folder, fault = StateFolder(state), Item("data", "error", "there are no data")
    with pytest.raises(PreflightError, match="fix first: data"), folder.locked() as claim:
        (state / "data-check.json").write_text("{}")
        require_preflight([fault], lambda line: None)
        claim.keep()


def test_a_refused_start_leaves_no_state_folder(tmp_path: Path) -> None:
    refused_start(tmp_path / "kit" / "state")
    assert not list(tmp_path.iterdir())


def test_a_refused_start_leaves_what_a_hospital_decided_and_the_check_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "approvals.json").write_text("{}")
    refused_start(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"approvals.json", "data-check.json"}


def test_a_second_start_is_told_who_the_first_is(folder: StateFolder) -> None:
    owner = f"process {os.getpid()} on {os.uname().nodename}, since 20"
    with pytest.raises(AlreadyRunningError, match=rf"this site is already running \({owner}"), folder.locked():
        pytest.fail("two of them")


@pytest.mark.parametrize("command", ["preflight", "start", "runner", "courier"])
def test_a_kit_that_is_none_is_left_alone(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [command, "--kit", str(tmp_path / "none"), *(["--data", str(tmp_path)] if command != "courier" else [])]
    shared = ["--shared", str(tmp_path / "shared")] if command in ("runner", "courier") else []
    assert main([*arguments, *shared]) != 0
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
