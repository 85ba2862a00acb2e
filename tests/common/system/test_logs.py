"""Nothing that somebody else can name forges a line of a log."""

from __future__ import annotations

import logging
import subprocess
import sys

from common.system.logs import LogFormatter


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
