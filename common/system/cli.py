"""Shared code of both command-line programs: errors as text, exit statuses, and a quiet Flower."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import common
from common.errors import FedvoxError, was_interrupted
from common.formatting import visible, without_passwords
from common.system.logs import log_to_stderr

INTERRUPTED = 130
"""Exit status that shells report for a program ended by SIGINT."""
LONGEST_LINGER_SECONDS = 3600.0
PRIVATE_UMASK, STRANGERS = 0o077, 0o007
Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argument parser with two-line errors whose help keeps the formatting of examples."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Print the error and a pointer to the help, and exit with status 2."""
        text = f"{self.prog}: {without_passwords(message)}\nSee {self.prog} --help\n"
        self.exit(2, visible(text, keep="\n"))


def base_parser(program: str, description: str) -> Parser:
    """Return a parser with the options that every command has."""
    parser = Parser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {common.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and the log")
    return parser


def add_command(
    commands: argparse._SubParsersAction[Any], name: str, function: Command, text: str, *examples: str
) -> Parser:
    """Add a command to a program.

    Parameters
    ----------
    commands
        The result of ``ArgumentParser.add_subparsers``.
    name
        The command's name.
    function
        Runs it and returns the exit status.
    text
        What it does, in a line.
    examples
        The arguments of each example, without the names of program and command.
    """
    command: Parser = commands.add_parser(name, help=text)
    command.epilog = "".join(["example:\n", *(f"  {command.prog} {arguments}\n" for arguments in examples)])
    command.set_defaults(command=function)
    return command


def add_json(command: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    command.add_argument("--json", action="store_true", help="print JSON")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")


def add_metrics(command: argparse.ArgumentParser) -> None:
    """Add ``--metrics``, for commands that run long."""
    command.add_argument(
        "--metrics", metavar="[HOST:]PORT", help="serve metrics for Prometheus, on the loopback interface by default"
    )


def add_linger(command: argparse.ArgumentParser) -> None:
    """Add ``--linger``, for commands that run until they are stopped."""
    command.add_argument(
        "--linger",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait this long before exiting with an error, for container platforms that restart it at once",
    )


def show(text: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print lines for people, with all other control characters visible: nothing is obeyed that somebody named so.

    Parameters
    ----------
    text
        One or several lines. A name in it that could hold a line break is made ``visible`` by the caller.
    end
        What follows.
    file
        Standard output by default.
    """
    print(visible(str(text), keep="\n"), end=end, file=file, flush=True)


def run(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Parse the arguments, run the chosen command, and print errors as text on stderr.

    Returns
    -------
    int
        0 for success, 130 if interrupted (SIGINT or SIGTERM), 2 for what would fail again in the same way (wrong usage
        or configuration, a damaged file), 1 for other errors.
    """
    # Before flwr is imported: these variables are read at import time.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Before torch is imported. By default OpenMP threads wait in a busy loop; on a machine with other load, a training
    # step then takes six times as long as with threads that sleep while they wait.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Schedulers and service managers stop a program with SIGTERM: shut down as cleanly as on Ctrl-C. SIGTERM also
    # reaches programs that a shell started in the background, which ignore SIGINT.
    signal.signal(signal.SIGTERM, _interrupt)
    # A file name that is not UTF-8 is shown with its bytes, as on stderr.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    _refuse_empty(parser, given)
    options = parser.parse_args(given)
    _keep_files_private(options)
    log_to_stderr(logging.WARNING, "%(name)s: %(message)s")
    # Tracebacks are logged only with --debug; otherwise the error is printed in one line.
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
        # The exception's text, if any, tells the user how to resume.
        show(f"{parser.prog}: {str(error).strip() or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone (for example a closed pager): discard the rest of the output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a bug: report it as one
        if options.debug:
            raise
        return _tell_of_a_bug(parser.prog, error, options)


def _tell_of_a_bug(program: str, error: Exception, options: argparse.Namespace) -> int:
    if was_interrupted(error):
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    text = f"{program}: internal error, {type(error).__name__}: {error}"
    _tell(f"{text}\n{_where_the_cause_is(error)}", options)
    return 1


def _where_the_cause_is(error: Exception) -> str:
    """Write the traceback to a file of its own, for this user alone, and say which."""
    try:
        descriptor, file = tempfile.mkstemp(prefix="fedvox-error-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            print(without_passwords(f"fedvox {common.__version__}: {shlex.join(sys.argv)}"), file=stream)
            stream.write(without_passwords(visible("".join(traceback.format_exception(error)), keep="\n")))
    except OSError:
        return "Run again with --debug to see its cause."
    return f"Its cause is in {file}; please report it. Run again with --debug to see more."


def _refuse_empty(parser: Parser, arguments: Sequence[str]) -> None:
    """Refuse an empty argument: as a path it would mean the working directory."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if not argument or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("-") else "an argument")
            parser.error(f"{name}: is empty; is a shell variable not set?")


def _keep_files_private(options: argparse.Namespace) -> None:
    """Let new files be their owner's alone, unless the umask already keeps all others but the group from them.

    With 0007 the two halves of a site, each under an account of its own, share a folder by their group. A command with
    the default ``for_others`` makes files for others.
    """
    before = os.umask(PRIVATE_UMASK)
    if before & STRANGERS == STRANGERS or getattr(options, "for_others", False):
        os.umask(before)


def _tell(text: str, options: argparse.Namespace) -> None:
    """Print the error and linger; a signal ends the wait without hiding the error."""
    with contextlib.suppress(KeyboardInterrupt):
        show(without_passwords(text), file=sys.stderr)
        time.sleep(min(max(0.0, getattr(options, "linger", 0.0)), LONGEST_LINGER_SECONDS))


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    del signal_number, frame
    raise KeyboardInterrupt


def default_cache() -> Path:
    """Return the folder for preprocessed scans: $FEDVOX_CACHE, or fedvox in the user's cache folder."""
    if folder := os.environ.get("FEDVOX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvox"
