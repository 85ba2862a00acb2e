"""The ``ledger`` command, which shows the privacy that a hospital's patients have spent."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, FedvoxError
from common.formatting import counted
from common.system.cli import add_json, show

if TYPE_CHECKING:
    from client.consent.site_config import SiteConfig
    from client.ledger.ledger import Ledger, Witness
    from client.ledger.rollback import Claim

_CONFIRMATION = "recover"


def add_ledger_command(commands: Any) -> None:
    """Add the command to the result of ``ArgumentParser.add_subparsers``."""
    ledger = commands.add_parser(
        "ledger",
        help="show the privacy that patients have spent, and verify the ledger",
        description="Shows, for every group of patients, the privacy spent, when, and by which federation. With "
        "--recover, if there is no backup: starts a new ledger after the old one was lost, edited or replaced.",
        epilog="examples:\n  fedvox-client ledger\n  fedvox-client ledger --kit kit --data scans --verify\n"
        "  fedvox-client ledger --kit kit --recover --spent 8@5e-6 --reason 'disk failed' --user 'Dr. Example'\n",
    )
    ledger.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="default: $FEDVOX_LEDGER, or fedvox/ledger.jsonl in the user's data folder",
    )
    ledger.add_argument("--data", type=Path, metavar="DIR", help="only the patients of this dataset folder")
    ledger.add_argument("--kit", type=Path, metavar="DIR", help="also compare it with this kit's site file and records")
    ledger.add_argument("--state", type=Path, metavar="DIR", help="the site's own files (default: state in the kit)")
    ledger.add_argument("--verify", action="store_true", help="verify the hash chain; exit status 1 if it is broken")
    add_json(ledger)
    ledger.add_argument("--recover", action="store_true", help="set the old file aside and start a new one; asks first")
    ledger.add_argument(
        "--spent", metavar="EPSILON@DELTA", help="with --recover: what every patient has already spent, or everything"
    )
    ledger.add_argument(
        "--keep",
        action="store_true",
        help="with --recover: keep the ledger as it is, although the server has seen more: it is wrong, or only the "
        "audit log was set back",
    )
    ledger.add_argument("--reason", metavar="TEXT", help="with --recover: what happened; kept in the ledger")
    ledger.add_argument("--user", metavar="NAME", help="with --recover: who decides (default: the account)")
    ledger.add_argument("--yes", action="store_true", help="with --recover: do not ask")
    ledger.set_defaults(command=_ledger)


def _ledger(options: argparse.Namespace) -> int:
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.ledger.ledger import Ledger, LedgerError, Witness
    from client.ledger.rollback import pending_claim
    from client.ledger.statement import as_text, limit_of, view
    from client.state_folder import default_ledger
    from common.config.federation import as_json

    state = options.state or (options.kit / "state" if options.kit else None)
    witness = Witness(state) if state else None
    ledger = Ledger(options.ledger or default_ledger(), witness)
    if options.recover:
        return _recover(options, ledger, witness, state)
    if given := [name for name in ("spent", "keep", "reason", "user", "yes") if getattr(options, name)]:
        raise ConfigError(f"--{given[0]}: is for --recover; add --recover, or leave out --{given[0]}")
    account, proof = ledger.prove()
    if proof is None and options.verify:
        raise LedgerError(
            f"{ledger.path}: there is no ledger: nothing was spent under this account, or --ledger is missing"
        )
    site = load_site_config(state / SITE_FILE) if state else None
    folder = _folder(options.data, ledger, site) if options.data else None
    limit = limit_of(account, site.privacy if site else None)
    content = {"ledger": str(ledger.path)} | view(account, limit, folder)
    stopped = pending_claim(state, ledger) if state else None
    content["rolled_back"] = stopped[0].model_dump(mode="json") if stopped else None
    if options.json:
        verified = {"entries": proof.entries, "head": proof.head} if proof and options.verify else None
        show(as_json(content | {"verified": verified}), end="")
        return 0
    if stopped:
        show(f"STOPPED until a person has looked: {_told(*stopped)}\n")
    show(as_text(content, shutil.get_terminal_size((100, 24)).columns))
    if proof is not None and options.verify:
        witnessed = "it matches this site's records" if state else "add --kit to compare it with the site's records"
        show(
            f"\nThe ledger is intact: {counted(proof.entries, 'entry', 'entries')}, {proof.first} to {proof.last}; "
            f"{witnessed}.\n"
            f"Last hash: {proof.head}"
        )
    return 0


class NotConfirmedError(FedvoxError):
    """The user did not confirm."""


def _recover(options: argparse.Namespace, ledger: Ledger, witness: Witness | None, state: Path | None) -> int:
    from client.ledger.recovery import parse_spent, plan_recovery, recover
    from client.ledger.rollback import pending_claim, settle
    from client.state_folder import StateFolder

    if options.reason is None or (options.spent is None) is not options.keep:
        raise ConfigError(
            "--recover: needs --reason TEXT and either --spent EPSILON@DELTA, --spent everything or --keep"
        )
    if state is not None and not state.is_dir():
        raise ConfigError(f"{state}: is not a folder; give the state folder of the site (--state), or leave --kit out")
    if state is not None and StateFolder(state).is_locked():
        raise ConfigError(f"{state}: this site is running; stop it first (fedvox-client status)")
    stopped = pending_claim(state, ledger) if state else None
    if options.keep:
        return _keep(options, ledger, state, stopped)
    spent = parse_spent(options.spent)
    claim = stopped[0] if stopped else None
    plan = plan_recovery(ledger, witness, spent, claim)
    before = f"epsilon {plan.known:.3g}" if plan.known else "nothing"
    show(
        f"{plan.problem}\n\n"
        f"Proven to have been spent: {before}.\n"
        f"Every patient, known or new, is assumed to have spent: {spent}.\n"
        "The old file is kept. This decision stays in the ledger permanently."
    )
    if not options.yes:
        _ask()
    entry = recover(ledger, witness, spent, options.reason, options.user, claim)
    if state is not None and claim is not None:
        settle(state, ledger, claim, options.reason, options.user, is_kept=False)
    kept = f" The old file is {ledger.path.with_name(entry.set_aside)}." if entry.set_aside else ""
    show(f"\nRecovered {ledger.path} by {entry.user}.{kept}")
    if state is None:
        show("Sites that used the old ledger refuse this one until each is recovered too: the same command with --kit.")
    return 0


def _keep(
    options: argparse.Namespace, ledger: Ledger, state: Path | None, stopped: tuple[Claim, list[str]] | None
) -> int:
    """Let a site go on with its files as they are, although the server has seen more."""
    from client.ledger.rollback import settle

    if state is None:
        raise ConfigError("--keep: needs the site (--kit or --state)")
    if not options.reason.strip():
        raise ConfigError("--reason: is empty; say why the files are right as they are (it is kept permanently)")
    if stopped is None:
        raise ConfigError(f"{ledger.path}: the server has seen nothing that is missing here; there is nothing to keep")
    show(
        f"{_told(*stopped)}\n\nThe ledger is not changed, and only what it holds counts as spent. Keep it if nothing "
        "was restored from an old copy, or the audit log alone. It is noted in the audit log and beside the ledger."
    )
    if not options.yes:
        _ask()
    settle(state, ledger, stopped[0], options.reason.strip(), options.user, is_kept=True)
    show(f"\nKept {ledger.path}; the site goes on.")
    return 0


def _told(claim: Claim, lacking: list[str]) -> str:
    return f"The server says that this site reported {claim}. Older than that: {', '.join(lacking)}."


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("--recover: needs confirmation; run it in a terminal, or add --yes")
    show(f"Type {_CONFIRMATION} to continue: ", end="")
    if sys.stdin.readline().strip() != _CONFIRMATION:
        raise NotConfirmedError("nothing was changed")


def _folder(data: Path, ledger: Ledger, site: SiteConfig | None) -> Any:
    from client.ledger.identifiers import Identifiers
    from client.ledger.patient_identity import PatientIndex
    from client.ledger.statement import Folder
    from common.imaging.datasets.case import AS_STORED, Reading
    from common.imaging.datasets.dataset import find_dataset

    def progress(done: int, cases: int) -> None:
        if sys.stderr.isatty():
            show(f"reading patients: {done} of {cases}", end="\n" if done == cases else "\r", file=sys.stderr)

    # Include cases without a label map: they may have been patients of another dataset. Store nothing: a read-only
    # command leaves no trace.
    reading = Reading(site.geometry, site.patient_rule) if site else AS_STORED
    if site is None:
        found = find_dataset(data, labelled=False)
    else:
        found = find_dataset(data, site.dicom, bids=site.bids, labelled=False)
    cases = found.read_as(reading).cases
    index = PatientIndex(None, Identifiers(ledger, may_make=False).mark)
    return Folder(str(data), list(index.identify(cases, progress).values()))
