"""The last ledger entry that each site has reported, beside the run folders: a new run hands it back too.

Only the ledger's entry outlives a run. A ledger is the hospital's and holds all its federations; an audit log belongs
to one state folder, and a new kit may begin a new one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from common.errors import DamagedFileError, OutputError
from common.system.files import cannot_write
from common.system.locks import lock_file
from common.system.state_file import CHANGED, read_sealed, write_sealed
from common.weights.digest import Digest
from server.run_store.site_reports import LedgerSeen, SiteReports

FILE = "ledgers-seen.json"
_Sites = dict[str, LedgerSeen]
_AUTHORITIES = TypeAdapter(dict[Digest, _Sites])
_REMEDY = "restore it from a backup, or remove it: ledgers that were set back before a new run are then not noticed"


@contextlib.contextmanager
def ledgers_carried_over(run: Path, authority: str, say: Callable[[str], None]) -> Iterator[None]:
    """Give a run's sites what they last reported in earlier runs, and afterwards keep what they reported in this one.

    Parameters
    ----------
    run
        The run folder. No server app works in it when the block begins and ends.
    authority
        Fingerprint of the authority that the sites' names come from.
    say
        Called with a sentence if nothing can be kept. A file that is damaged when the block ends is no more than that:
        it neither fails the run nor hides why it ended.

    Raises
    ------
    DamagedFileError
        The file of ledger entries, or the run's file of reports, is damaged when the block begins.
    """
    # Before, too: an earlier server may have been killed.
    SiteReports(run).recall(_keep(run, authority, say))
    try:
        yield
    finally:
        try:
            _keep(run, authority, say)
        except DamagedFileError as error:
            say(str(error))


def _keep(run: Path, authority: str, say: Callable[[str], None]) -> _Sites:
    """Write down the last ledger entries of a run's sites, unless later ones are known; return all the authority's."""
    file, reported = run.resolve().parent / FILE, SiteReports(run).ledgers()
    try:
        with _locked(file):
            known = _read(file)
            before = known.get(authority, {})
            sites = before | {
                site: seen for site, seen in reported.items() if site not in before or seen.time > before[site].time
            }
            if sites != before:
                write_sealed(file, _AUTHORITIES.dump_python(known | {authority: sites}, mode="json"))
            return sites
    except OutputError as error:
        say(f"{error} (a new run would not notice a ledger that was set back)")
        return reported


def _read(file: Path) -> dict[Digest, _Sites]:
    if not file.exists():
        return {}
    try:
        return _AUTHORITIES.validate_python(read_sealed(file, _REMEDY)[0])
    except ValidationError:
        raise DamagedFileError(file, CHANGED, _REMEDY) from None


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = file.with_name(f".{file.name}.lock")
    try:
        held = lock_file(lock)
    except OSError as error:
        raise cannot_write(lock, error) from None
    with held:
        yield
