"""The command ``fedvox-client fingerprint``: what a site shares of its data before the kits are made."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.formatting import visible
from common.system.cli import add_command, show

if TYPE_CHECKING:
    from client.consent.site_config import SiteConfig
    from common.config.federation import FederationConfig

EXAMPLE = "--name north --federation federation.yaml --data scans --key key --site site.yaml --out north.json"


def add_fingerprint_command(commands: Any) -> None:
    """Add the command to the result of ``ArgumentParser.add_subparsers``."""
    text = "sum up this site's data in a signed file, from which the coordinator chooses what is auto"
    command = add_command(commands, "fingerprint", _fingerprint, text, EXAMPLE)
    command.add_argument("--name", required=True, metavar="NAME", help="the site's name in the federation")
    command.add_argument(
        "--federation", type=Path, required=True, metavar="FEDERATION.yaml", help="the coordinator's federation file"
    )
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder with labels")
    command.add_argument("--key", type=Path, required=True, metavar="DIR", help="folder with the key that request made")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="the file to send")
    rules = command.add_mutually_exclusive_group(required=True)
    rules.add_argument(
        "--site", type=Path, metavar="site.yaml", help="the hospital's limits, minimum_cell, and how its data is read"
    )
    rules.add_argument("--no-site", action="store_true", help="the hospital has no site file, and so no limits")
    command.add_argument(
        "--state", type=Path, metavar="DIR", help="state folder, if any: its pause counts, its audit log notes it"
    )


def _fingerprint(options: argparse.Namespace) -> int:
    from client.consent.site_config import SiteConfig, load_site_config
    from client.site.earlier_fingerprints import lock_record
    from common.config.federation import load_federation

    if options.site is not None and not options.site.is_file():
        raise ConfigError(f"--site {options.site}: there is no such file")
    terms = SiteConfig() if options.site is None else load_site_config(options.site)
    config = load_federation(options.federation)
    if options.state is not None:
        _check_not_stopped(options.state)
    with lock_record(options.key):
        _make(config, terms, options)
    return 0


def _check_not_stopped(state: Path) -> None:
    """Check that nobody has paused the site, or withdrawn it."""
    from client.consent.decisions import DECISION_EVENTS, DecisionBook, missing_stop
    from client.state_folder import APPROVALS_FILE, AUDIT_FILE, default_consent
    from common.audit import AuditLog

    decisions = DecisionBook(state, default_consent()).read()
    for done, decision, end in (
        ("withdrawn", decisions.withdrawn, "approve"),
        ("paused", decisions.paused, "resume"),
    ):
        if decision is not None:
            raise ConfigError(f"{state}: {done} by {decision.user}, so nothing is shared; fedvox-client {end} ends it")
    events = (entry.event for entry in AuditLog(state / AUDIT_FILE, DECISION_EVENTS).kept())
    if missing := missing_stop(decisions, events):
        raise ConfigError(f"{state / APPROVALS_FILE}: is older than the {missing} in {AUDIT_FILE}; nothing is shared")


def _make(config: FederationConfig, terms: SiteConfig, options: argparse.Namespace) -> None:
    from client.site.fingerprint import in_words, make_fingerprint
    from client.state_folder import AUDIT_FILE, FINGERPRINT_EVENT
    from common.audit import AuditLog
    from common.system.files import to_appear

    made = make_fingerprint(config, options.name, options.data, options.key, terms, _progress)
    content = made.file.as_json().encode()
    with to_appear(options.out, content):
        # Summing up takes a while, in which somebody may have changed their mind.
        if options.state is not None:
            _check_not_stopped(options.state)
        made.remember(options.key, options.out)
        # Logged before it is there to be sent.
        if options.state is not None:
            AuditLog(options.state / AUDIT_FILE).append(
                FINGERPRINT_EVENT,
                federation=config.name,
                site=options.name,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
    show("WHAT THIS FILE SHARES, AND NOTHING ELSE")
    for line in in_words(made.file):
        show(visible(f"  {line}"))
    show(f"{options.out}: nothing was sent; send it to the coordinator together with the request ({options.name}.csr)")


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        show(f"case {done} of {total}", file=sys.stderr)
