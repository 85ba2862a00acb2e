"""Commands called as from a terminal, in this process: one of their own would first spend seconds on imports."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
from collections.abc import Callable, Sequence

import pytest

Main = Callable[[Sequence[str]], int]


def call(main: Main, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a command returns and prints; umask, signals and environment are as before afterwards."""
    command = [str(argument) for argument in arguments]
    out, errors = io.StringIO(), io.StringIO()
    umask, ending = os.umask(0o022), signal.getsignal(signal.SIGTERM)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            for name, value in environment.items():
                patch.setenv(name, value)
            status = main(command)
    except SystemExit as end:  # wrong usage, or --help
        status = end.code if isinstance(end.code, int) else 0
    finally:
        os.umask(umask)
        signal.signal(signal.SIGTERM, ending)
    return subprocess.CompletedProcess(command, status, out.getvalue(), errors.getvalue())
