"""What both command lines share."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.system.cli import add_command, base_parser, run, show

COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "client": lambda none: ["client.cli", "runner", f"--kit={none}", f"--data={none}", f"--shared={none}"],
    "server": lambda none: ["server.cli", "gateway", f"--kit={none}", f"--run={none}", "--listen=127.0.0.1:1"],
}


@pytest.mark.parametrize("folder", ["client/cli", "server/cli"])
def test_commands_print_by_show_alone(folder: str) -> None:
    """It makes control characters visible, which ``print`` would hand to the terminal."""
    files = sorted((Path(__file__).parents[3] / folder).glob("*.py"))
    assert len(files) > 3
    for file in files:
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], file


def test_what_is_shown_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    show("red \x1b[31m\r\u202e\nnext")
    show("end", end="\r", file=sys.stderr)
    assert capsys.readouterr() == ("red \\x1b[31m\\r\\u202e\nnext\n", "end\r")


def test_a_wrong_argument_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(base_parser("program", ""), ["--no\x1b[2J"])
    assert capsys.readouterr().err == "program: unrecognized arguments: --no\\x1b[2J\nSee program --help\n"


def failing(which: str, folder: Path, linger: float) -> subprocess.Popen[str]:
    command = [*COMMANDS[which](folder / "none"), f"--linger={linger}"]
    return subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("which", COMMANDS)
def test_who_lingers_tells_the_error_at_once_and_waits_until_told_to_stop(which: str, tmp_path: Path) -> None:
    with failing(which, tmp_path, 600) as process:
        assert process.stderr is not None
        assert "none" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (1, 2)
        assert process.stderr.read() == ""


def test_a_command_ends_with_its_error_after_it_has_lingered(tmp_path: Path) -> None:
    with failing("server", tmp_path, 0.5) as process:
        assert process.stderr is not None
        process.stderr.readline()
        told = time.monotonic()
        assert process.wait(60) in (1, 2)
        assert time.monotonic() - told > 0.4


FILES = """
import argparse, os, sys
from pathlib import Path
from common.system.cli import base_parser, run
os.umask(int(sys.argv[1], 8))
def make(options: argparse.Namespace) -> int:
    Path("folder").mkdir()
    Path("folder/file").write_text("")
    return 0
parser = base_parser("program", "")
parser.set_defaults(command=make, for_others=bool(sys.argv[2:]))
sys.exit(run(parser, []))
"""


@pytest.mark.parametrize(
    ("arguments", "folder", "file"),
    [
        (["022"], 0o700, 0o600),
        (["0"], 0o700, 0o600),
        (["027"], 0o750, 0o640),
        (["07"], 0o770, 0o660),
        (["022", "for others"], 0o755, 0o644),
    ],
)
def test_files_are_their_owners_alone_unless_the_umask_gives_them_to_a_group(
    tmp_path: Path, arguments: list[str], folder: int, file: int
) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", FILES, *arguments], cwd=tmp_path, env=environment, check=True)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("folder", "folder/file")]
    assert modes == [folder, file]


def test_an_error_reaches_the_terminal_without_control_characters() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "report", "\x1b[2Jrun"], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert rb"\x1b[2Jrun: does not exist" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["predict", "--output", ""], "--output"),
        (["predict", "--input="], "--input"),
        (["check", "--data", "", "--json"], "--data"),
        ([""], "an argument"),
        (["status", ""], "an argument"),
    ],
)
def test_an_empty_argument_is_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(base_parser("program", "For tests."), arguments)
    assert caught.value.code == 2
    assert f"program: {named}: is empty; is a shell variable not set?" in capsys.readouterr().err


def _interrupted(problem: BaseException) -> int:
    def command(options: object) -> int:
        raise problem

    parser = base_parser("program", "For tests.")
    add_command(parser.add_subparsers(), "work", command, "For tests.")
    return run(parser, ["work"])


def _wrapped() -> BaseException:
    error = RuntimeError("failed inside a library")
    error.__context__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), KeyboardInterrupt(" "), _wrapped()], ids=repr)
def test_an_interruption_is_said(problem: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert _interrupted(problem) == 130
    assert capsys.readouterr().err == "program: interrupted\n"


def test_an_interruption_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert _interrupted(KeyboardInterrupt("interrupted; resume with --resume")) == 130
    assert capsys.readouterr().err == "program: interrupted; resume with --resume\n"


def test_the_cause_of_an_internal_error_is_in_a_log_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _interrupted(KeyError("\x1b[2Jnorth")) == 1
    told = capsys.readouterr().err
    [file] = tmp_path.iterdir()
    assert f"Its cause is in {file}; please report it." in told
    assert file.stat().st_mode & 0o777 == 0o600
    log = file.read_text()
    assert "Traceback" in log and "in command" in log and "KeyError" in log
    assert "\x1b" not in log + told


def test_without_a_place_for_a_log_an_internal_error_says_how_to_see_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert _interrupted(KeyError("north")) == 1
    assert capsys.readouterr().err.endswith("\nRun again with --debug to see its cause.\n")
