"""The command of ``fedvox-server`` that makes a run's model a folder that others can use and check."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common.system.cli import add_command, show

EXAMPLES = (
    "runs/first --out hippocampus-model",
    "runs/first --format all --out hippocampus-model",
    "run --kit kits/server --out liver-model",
)


def add_export(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``export``."""
    text = "write a run's released model with its card, its manifest and the federation's signature"
    command = add_command(commands, "export", _export, text, *EXAMPLES)
    command.add_argument("run", type=Path, metavar="RUN_DIR")
    command.add_argument(
        "--out", type=Path, required=True, metavar="MODEL_DIR", help="a folder that does not exist yet"
    )
    command.add_argument(
        "--format",
        choices=["fedvox", "onnx", "torchscript", "monai-bundle", "all"],
        default="fedvox",
        help="what comes beside Fedvox's own files (default: fedvox, nothing)",
    )
    command.add_argument(
        "--kit", type=Path, metavar="DIR", help="the server's kit that the run was started with; its key signs"
    )


def _export(options: argparse.Namespace) -> int:
    from server.export.export import ExportOptions, export_model

    notes = export_model(options.run, ExportOptions(options.out, options.kit, options.format))
    show(options.out)
    for note in notes:
        show(note, file=sys.stderr)
    return 0
