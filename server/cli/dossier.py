"""The command of ``fedvox-server`` that writes the dossier of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.formatting import counted
from common.system.cli import add_command, show

EXAMPLES = ("runs/first --out first-dossier", "kits/server/run --out dossier --consent north.json --consent south.json")


def add_dossier(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``dossier``."""
    text = "write what review boards and data-protection officers ask of a run"
    command = add_command(commands, "dossier", _dossier, text, *EXAMPLES)
    command.add_argument("run", type=Path, metavar="RUN_DIR")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    command.add_argument(
        "--consent",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what a hospital got from fedvox-client review --json; may be repeated",
    )


def _dossier(options: argparse.Namespace) -> int:
    from server.reporting.dossier.write import HTML_FILE, write_dossier

    dossier = write_dossier(options.run, options.out, options.consent)
    count = counted(dossier.open_count, "point")
    show("\n".join([*dossier.notices, f"{options.out / HTML_FILE}: {count} for people to fill in, marked OPEN"]))
    return 0
