"""The command ``import``: studies from an archive (PACS) to a dataset folder."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.formatting import counted, visible
from common.system.cli import add_command, add_json, show

if TYPE_CHECKING:
    from client.deidentify.choices import Choices
    from client.deidentify.identities import Identities
    from client.pacs.address import ArchiveAddress
    from client.pacs.archives.archive import Archive
    from client.pacs.dataset_folder import DatasetFolder
    from client.pacs.study_import import Result
    from common.imaging.io.dicom.rules import DicomRules

_EXAMPLES = (
    "--from pacs.yaml --query cohort.yaml --out scans --dry-run",
    "--from https://pacs.example/dicom-web --query cohort.yaml --out scans",
)


def add_import_command(commands: Any) -> None:
    """Add the command to the result of ``ArgumentParser.add_subparsers``."""
    command = add_command(commands, "import", _import, "fetch studies from a PACS and de-identify them", *_EXAMPLES)
    command.add_argument(
        "--from", dest="source", required=True, metavar="PACS", help="pacs.yaml, a DICOMweb URL, or TITLE@host:port"
    )
    command.add_argument("--query", type=Path, required=True, metavar="cohort.yaml", help="which studies")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="dataset folder; may exist")
    command.add_argument("--dry-run", action="store_true", help="only say what would be fetched")
    command.add_argument(
        "--anonymise", choices=["basic", "off"], default="basic", help="off keeps all identities, and is logged"
    )
    command.add_argument(
        "--dates", choices=["shifted", "removed"], default="shifted", help="of studies (default: shifted)"
    )
    command.add_argument(
        "--device", choices=["kept", "removed"], default="kept", help="name and number of the scanner (default: kept)"
    )
    command.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=["burned-in", "secondary-capture", "ultrasound", "derived"],
        help="take images whose pixels may show names; may be given several times",
    )
    command.add_argument("--site", type=Path, metavar="site.yaml", help="the hospital's rules of reading DICOM")
    command.add_argument(
        "--identities", type=Path, metavar="DIR", help="secret and record of pseudonyms (default: beside the ledger)"
    )
    add_json(command)


def _import(options: argparse.Namespace) -> int:
    from client.consent.decisions import decision_of
    from client.pacs.address import read_address
    from client.pacs.arrival import Arrivals
    from client.pacs.cohort import load_cohort, read_accessions
    from client.pacs.dataset_folder import DatasetFolder
    from client.pacs.importing import import_studies, log_import, reporting
    from client.pacs.study_import import Importer

    address, folder = read_address(options.source)
    archive = _archive(address, folder)
    cohort = load_cohort(options.query)
    accessions: tuple[str, ...] = ()
    if cohort.accession_numbers:
        accessions = read_accessions(options.query.parent / cohort.accession_numbers, cohort.column)
    choices = _choices(options)
    dataset = DatasetFolder(options.out)
    results: list[Result] = []
    with _identities(options, dataset) as identities:
        dataset.require_secret(identities.name)
        importer = Importer(
            archive,
            dataset,
            Arrivals(identities, choices),
            _rules(options.site),
            address.attempts,
            address.pause_seconds,
            options.dry_run,
        )
        found = import_studies(importer, cohort, accessions)
        if options.dry_run:
            _follow(found, results, options.json)
            reports: Sequence[Path] = ()
        else:
            with dataset.opened(), reporting(dataset.beside, results) as reports:
                dataset.note_secret(identities.name)
                log_import(dataset.beside, choices, archive, decision_of(None).account)
                _follow(found, results, options.json)
    _summarise(results, reports, options.json)
    return 0 if results and all(one.outcome.is_right for one in results) else 1


@contextmanager
def _identities(options: argparse.Namespace, dataset: DatasetFolder) -> Iterator[Identities]:
    """Open the secret; where there is none, a dry run has one that is forgotten, since nothing was imported with it."""
    from client.deidentify.identities import Identities, has_identities
    from client.state_folder import default_ledger

    folder = options.identities or default_ledger().with_name("identities")
    if folder.resolve().is_relative_to(dataset.out):
        raise ConfigError(f"--identities {folder}: lies in the dataset, which others may get; choose another folder")
    if options.dry_run and not has_identities(folder):
        with tempfile.TemporaryDirectory() as forgotten:
            yield Identities(Path(forgotten))
    else:
        yield Identities(folder)


def _follow(found: Iterable[Result], results: list[Result], as_json: bool) -> None:
    """Collect results, and print each as it comes."""
    for result in found:
        results.append(result)
        if not as_json:
            show(_line(result))


def _choices(options: argparse.Namespace) -> Choices | None:
    """Return how files are de-identified; None for not at all."""
    from client.deidentify import choices

    made = choices.Choices(options.dates, options.device, frozenset(map(choices.Reason, options.allow)))
    if options.anonymise == "basic":
        return made
    if made != choices.Choices():
        raise ConfigError("--anonymise off: leaves files as they are; remove --dates, --device and --allow")
    return None


def _archive(address: ArchiveAddress, folder: Path) -> Archive:
    """Make the archive of an address; files that it names lie in a folder."""
    from client.pacs.address import credentials

    tls, token = credentials(address, folder)
    if address.url is not None:
        from client.pacs.archives.web_archive import WebArchive
        from client.pacs.web_service import WebService

        return WebArchive(WebService(address.url, tls, token, address.idle_seconds, address.study_seconds))
    from client.pacs.archives.dimse_archive import DimseArchive, receiver_settings
    from client.pacs.peer import Peer

    if address.ae_title is None or address.host is None or address.port is None:
        raise ConfigError("--from: needs ae_title, host and port")
    limits = (address.idle_seconds, address.study_seconds)
    peer = Peer(address.ae_title, address.host, address.port, address.own_ae_title, tls, *limits)
    return DimseArchive(peer, receiver_settings(address, folder))


def _rules(site: Path | None) -> DicomRules:
    from common.imaging.io.dicom.rules import USUAL_RULES

    if site is None:
        return USUAL_RULES
    from client.consent.site_config import load_site_config

    if not site.is_file():
        raise ConfigError(f"--site {site}: there is no such file")
    return load_site_config(site).dicom


def _line(result: Result) -> str:
    """Return what became of a study, in a line."""
    count = f"{result.received} of {counted(result.expected, 'instance')}"
    words = [f"{result.outcome:<14}{result.accession or result.study}", result.folder, count if result.expected else ""]
    line = "  ".join(word for word in words if word)
    return visible(f"{line}: {result.reason}" if result.reason else line)


def _summarise(results: Sequence[Result], reports: Sequence[Path], as_json: bool) -> None:
    """Print counts of outcomes, or everything as JSON."""
    from client.pacs.importing import count_outcomes, report_json

    if as_json:
        show(report_json(results))
        return
    counts = count_outcomes(results)
    instances = sum(one.expected for one in results if one.outcome.is_right)
    words = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    show(f"{counted(len(results), 'study', 'studies')}: {words or 'the archive has none'}; {instances:,} instances")
    for path in reports:
        show(f"report: {visible(str(path))}")
