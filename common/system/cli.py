"""What both command lines share: errors as text, exit statuses, and a quiet Flower."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import common
from common.errors import FedvoxError

INTERRUPTED = 130
"""Exit status, as shells have it for a program that SIGINT ended."""
LONGEST_LINGER_SECONDS = 3600.0
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors fit two lines and whose help keeps examples as they are written."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and where help is; exit status 2."""
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help\n")


def base_parser(program: str, description: str) -> Parser:
    """A parser with the options that every command has."""
    parser = Parser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {common.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the log")
    return parser


def add_linger(command: argparse.ArgumentParser) -> None:
    """Adds ``--linger``, for commands that run until they are stopped."""
    command.add_argument(
        "--linger",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait that long before it ends with an error; for what starts it again at once, such as containers",
    )


def run(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Parses, runs the chosen command, and turns errors into text on stderr.

    Returns
    -------
    int
        0 done, 2 wrong usage or configuration, 130 interrupted by a person or a service manager, 1 anything else.
    """
    # Before anything imports flwr: it reads both when it is imported.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Before anything imports torch. By default OpenMP threads wait for each other in a busy loop; on a machine with
    # other work besides, a training step then takes six times as long as with threads that sleep while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Schedulers and service managers end a program by SIGTERM: it deserves the same clean end as Ctrl-C. A program
    # started in the background by a shell ignores SIGINT, so this one also works where that does not.
    signal.signal(signal.SIGTERM, _interrupt)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # A site's traceback is for its own log; without --debug the command line says it in a line.
    logging.getLogger("fedvox").setLevel(logging.DEBUG if options.debug else logging.CRITICAL)
    command: Command | None = getattr(options, "command", None)
    if command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return command(options)
    except FedvoxError as error:
        if options.debug:
            raise
        _tell(f"{parser.prog}: {error}", options)
        return error.exit_status
    except KeyboardInterrupt as error:
        if options.debug:
            raise
        # Who knows how to go on says so, in the exception.
        print(f"{parser.prog}: {str(error) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (a pager that was quit): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last resort: a bug, told as one
        if options.debug:
            raise
        text = f"{parser.prog}: internal error, {type(error).__name__}: {error}"
        _tell(f"{text}\nRun again with --debug to see more.", options)
        return 1


def _tell(text: str, options: argparse.Namespace) -> None:
    """Says what is wrong, and lingers; a signal ends that, but does not hide what was wrong."""
    with contextlib.suppress(KeyboardInterrupt):
        print(text, file=sys.stderr, flush=True)
        time.sleep(min(max(0.0, getattr(options, "linger", 0.0)), LONGEST_LINGER_SECONDS))


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    del signal_number, frame
    raise KeyboardInterrupt


def default_cache() -> Path:
    """Where preprocessed scans are kept: $FEDVOX_CACHE, or fedvox under the user's cache folder."""
    if folder := os.environ.get("FEDVOX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvox"
