"""The last entries of its ledger and audit log that each site has reported, to be handed back to it.

The file outlives restarts of the server, within one run; for the next one see ``ledgers_seen``. What sites report is
only repeated to the same site, which compares it with its own files (``client.ledger.rollback``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from common.errors import DamagedFileError
from common.plan.base import Frozen
from common.protocol.messages import Result, SiteInfo
from common.system.state_file import CHANGED, read_sealed, write_sealed
from common.weights.digest import Digest

FILE = "site-reports.json"


Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LedgerSeen(Frozen):
    """The last entry of a ledger that a site has reported, and when it reported it first, in seconds since 1970."""

    entry: Digest
    time: Time


class SiteReport(Frozen):
    """What one site reported last.

    Attributes
    ----------
    epsilon
        None until the site has sent a result of a private federation.
    ledger, audit
        Hashes of the last entries.
    ledger_time
        When the site reported that entry of the ledger first, in seconds since 1970.
    """

    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    ledger: Digest | None = None
    audit: Digest | None = None
    ledger_time: Time = 0.0

    def as_seen(self) -> dict[str, Any]:
        """Return the fields of a ``Hello`` or ``Task``."""
        epsilon = math.nan if self.epsilon is None else self.epsilon
        return {"epsilon_seen": epsilon, "ledger_seen": self.ledger, "audit_seen": self.audit}


_SITES = TypeAdapter(dict[str, SiteReport])
_REMEDY = (
    "restore it from a backup, or remove it: sites whose ledgers were set back to older copies are then not noticed "
    "until they have reported again"
)


class SiteReports:
    """The reports of a run's sites; used by one process at a time.

    Parameters
    ----------
    run
        The run folder.
    """

    def __init__(self, run: Path) -> None:
        self._file = run / FILE
        self._known: dict[str, SiteReport] | None = None

    def last(self, site: str) -> SiteReport:
        """Return a site's last report; empty if there is none.

        Raises
        ------
        DamagedFileError
            The file is damaged.
        """
        return self._read().get(site, SiteReport())

    def note(self, answer: SiteInfo | Result) -> None:
        """Note what a site has reported, and write it to disk; nothing if it reports nothing, as in simulations.

        Raises
        ------
        DamagedFileError
            The file is damaged.
        OutputError
            It cannot be written.
        """
        if answer.ledger_head is None and answer.audit_head is None:
            return
        before = self.last(answer.site)
        epsilon = answer.epsilon if isinstance(answer, Result) else math.nan
        known = before.epsilon if not (math.isfinite(epsilon) and epsilon >= 0) else epsilon
        # A new state folder knows of no entry at first; the ledger holds the earlier ones all the same.
        ledger = answer.ledger_head or before.ledger
        since = before.ledger_time if ledger == before.ledger else time.time()
        report = SiteReport(epsilon=known, ledger=ledger, audit=answer.audit_head, ledger_time=since)
        if report != before:
            self._read()[answer.site] = report
            self._write()

    def ledgers(self) -> dict[str, LedgerSeen]:
        """Return the last ledger entry of every site that has reported one.

        Raises
        ------
        DamagedFileError
            The file is damaged.
        """
        return {
            site: LedgerSeen(entry=report.ledger, time=report.ledger_time)
            for site, report in self._read().items()
            if report.ledger is not None
        }

    def recall(self, ledgers: Mapping[str, LedgerSeen]) -> None:
        """Take ledger entries from earlier runs, of sites that have reported nothing in this one.

        Raises
        ------
        DamagedFileError
            The file is damaged.
        OutputError
            It cannot be written.
        """
        new = {
            site: SiteReport(ledger=seen.entry, ledger_time=seen.time)
            for site, seen in ledgers.items()
            if site not in self._read()
        }
        if new:
            self._read().update(new)
            self._write()

    def _write(self) -> None:
        write_sealed(self._file, {site: item.model_dump(mode="json") for site, item in sorted(self._read().items())})

    def _read(self) -> dict[str, SiteReport]:
        if self._known is None:
            content = read_sealed(self._file, _REMEDY)[0] if self._file.exists() else {}
            try:
                self._known = _SITES.validate_python(content)
            except ValidationError:
                raise DamagedFileError(self._file, CHANGED, _REMEDY) from None
        return self._known
