"""The command with which a hospital looks at the privacy that its patients have spent: ledger."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any


def add_ledger_command(commands: Any) -> None:
    """Adds the command to what ``ArgumentParser.add_subparsers`` returned."""
    ledger = commands.add_parser(
        "ledger",
        help="show what privacy the patients have spent, and prove that the ledger is whole",
        description="Shows, for every set of patients, what privacy was spent, when, and by which federation.",
        epilog="examples:\n  fedvox-client ledger\n  fedvox-client ledger --kit kit --data scans --verify\n",
    )
    ledger.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="default: $FEDVOX_LEDGER, or fedvox/ledger.jsonl in the user's data folder",
    )
    ledger.add_argument("--data", type=Path, metavar="DIR", help="only the patients of this dataset folder")
    ledger.add_argument("--kit", type=Path, metavar="DIR", help="also hold it against this kit's site file and memory")
    ledger.add_argument("--state", type=Path, metavar="DIR", help="the site's own files (default: state in the kit)")
    ledger.add_argument("--verify", action="store_true", help="prove the chain; exit status 1 if it is broken")
    ledger.add_argument("--json", action="store_true", help="for machines")
    ledger.set_defaults(command=_ledger)


def _ledger(options: argparse.Namespace) -> int:
    from client.ledger import Ledger, LedgerError, Witness
    from client.ledger_view import as_text, limit_of, view
    from client.site_state import default_ledger
    from common.config import as_json
    from common.site_config import SITE_FILE, load_site_config

    state = options.state or (options.kit / "state" if options.kit else None)
    ledger = Ledger(options.ledger or default_ledger(), Witness(state) if state else None)
    account, proof = ledger.prove()
    if proof is None and options.verify:
        raise LedgerError(f"{ledger.path}: there is no ledger; nothing was spent on this account, or give --ledger")
    site = load_site_config(state / SITE_FILE).privacy if state else None
    folder = _folder(options.data) if options.data else None
    content = {"ledger": str(ledger.path)} | view(account, limit_of(account, site), folder)
    if options.json:
        verified = {"entries": proof.entries, "head": proof.head} if proof and options.verify else None
        print(as_json(content | {"verified": verified}), end="")
        return 0
    print(as_text(content, shutil.get_terminal_size((100, 24)).columns))
    if proof is not None and options.verify:
        witnessed = "and is the one that this site wrote" if state else "add --kit to hold it against the site's memory"
        print(
            f"\nThe ledger is whole: {proof.entries} entries, {proof.first} to {proof.last}; {witnessed}.\n"
            f"Last hash: {proof.head}"
        )
    return 0


def _folder(data: Path) -> Any:
    from client.ledger_view import Folder
    from client.patients import PatientIndex
    from common.imaging.dataset import find_dataset

    def progress(done: int, cases: int) -> None:
        if sys.stderr.isatty():
            print(f"\rreading patients: {done} of {cases}", end="\n" if done == cases else "", file=sys.stderr)

    # Cases without a label map too: they were patients of another dataset perhaps. Nothing is remembered: who only
    # looks should leave no trace.
    cases = find_dataset(data).cases
    return Folder(str(data), list(PatientIndex(None).identify(cases, progress).values()))
