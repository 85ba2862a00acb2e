"""Nothing that somebody else can name forges a line of a log."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from common.system.logs import LogFormatter, log_to_file


def test_control_characters_of_a_message_are_visible() -> None:
    record = logging.LogRecord("fedvox", logging.INFO, "", 0, "from %s", ("east\n2026 INFO all is well\x1b[2J",), None)
    [line] = LogFormatter("%(name)s: %(message)s").format(record).splitlines()
    assert line == r"fedvox: from east\n2026 INFO all is well\x1b[2J"


def test_a_traceback_keeps_its_lines_and_nothing_else() -> None:
    try:
        raise ValueError("\x1b[31m")
    except ValueError:
        record = logging.LogRecord("fedvox", logging.ERROR, "", 0, "failed 100 %", None, sys.exc_info())
    first, *rest = LogFormatter().format(record).split("\n")
    assert first.endswith("ERROR fedvox: failed 100 %")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == r"ValueError: \x1b[31m"


def test_all_loggers_of_a_process_use_it() -> None:
    code = (
        "import logging; from common.system.logs import log_to_stderr; log_to_stderr(logging.INFO, '%(message)s')\n"
        "logging.getLogger('a.b').info('one\\rtwo'); logging.getLogger('a.b').debug('three')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"one\\rtwo\n"


def test_a_file_takes_errors_also_of_a_command_that_shows_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, file = logging.getLogger("fedvox"), tmp_path / "file.log"
    monkeypatch.setattr(log, "level", logging.CRITICAL)
    with log_to_file(file):
        logging.getLogger("fedvox.client").info("nothing to see")
        assert not file.exists()
        logging.getLogger("fedvox.client").error("task failed", exc_info=ValueError("the cause"))
    log.error("after that")
    assert log.level == logging.CRITICAL and log.propagate
    assert file.read_text().splitlines()[0].endswith("ERROR fedvox.client: task failed")
    assert file.read_text().splitlines()[-1] == "ValueError: the cause"
    assert capsys.readouterr().err == ""
