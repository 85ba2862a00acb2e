"""The command of ``fedvox-client`` that checks where an exported model comes from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common.system.cli import add_command, add_json, show

EXAMPLES = ("--model liver-model --kit kit", "--model liver-model --authority ca.crt --audit run/audit.jsonl")


def add_verify_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``verify``."""
    text = "check that an exported model is whole, who signed it, and that the run's audit log names it"
    command = add_command(commands, "verify", _verify, text, *EXAMPLES)
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="from fedvox-server export")
    trusted = command.add_mutually_exclusive_group()
    trusted.add_argument("--kit", type=Path, metavar="DIR", help="a kit of the federation that must have signed it")
    trusted.add_argument("--authority", type=Path, metavar="ca.crt", help="that federation's authority, without a kit")
    command.add_argument("--audit", type=Path, metavar="audit.jsonl", help="the run's audit log, which must name it")
    add_json(command)


def _verify(options: argparse.Namespace) -> int:
    from client.inference.verification import verify_export
    from common.certificates import AUTHORITY_FILE

    authority = options.authority if options.kit is None else options.kit / AUTHORITY_FILE
    found = verify_export(options.model, authority, options.audit)
    show(json.dumps(found.as_dict(), indent=2) if options.json else "\n".join(found.as_lines()))
    return 0
