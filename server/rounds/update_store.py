"""The accepted updates of the current round.

Updates are aggregated only once all their norms are known, so they wait here, in the encoding in which they arrived.
They are memory-mapped and read one window at a time, whatever their size and number. A note of each accepted update
saves the server from requesting it again after a crash.

Notes are named by a hash, because a site's name may contain any character in a simulation.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from common.errors import OutputError
from common.protocol.messages import Result
from common.system.files import OWN_FILE, write_atomically
from common.weights.encoding import Encoding
from server.rounds.admission import AcceptedUpdate
from server.rounds.aggregation import StoredUpdates
from server.rounds.weight_transfer import WeightTransfer
from server.site_weights import site_weights


class UpdateStore:
    """The accepted updates of one round.

    Parameters
    ----------
    folder
        Holds the notes of the current round; created when needed.
    run, round_number
        The run and round of the updates.
    size
        Number of values per vector.
    encoding
        Encoding of the vectors.
    transfer
        Holds the updates themselves.
    """

    def __init__(
        self, folder: Path, run: str, round_number: int, size: int, encoding: Encoding, transfer: WeightTransfer
    ) -> None:
        self._folder = folder
        self._run = run
        self._round = round_number
        self._size = size
        self._encoding = encoding
        self._transfer = transfer
        self.updates: dict[str, AcceptedUpdate] = {}

    def open(self, read_again: Callable[[Result], float | None]) -> None:
        """Recover this round's updates after a crash, and remove all others.

        Parameters
        ----------
        read_again
            Checks a recovered update again and returns its norm, or None if it fails.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be used: {error.strerror or error}") from None
        for file in sorted(self._folder.glob("*.json")):
            found = self._recover(file, read_again)
            if found is not None:
                self.updates[found.result.site] = found
        self._transfer.keep_updates({site: update.result.update or "" for site, update in self.updates.items()})

    def add(self, update: AcceptedUpdate) -> None:
        """Add an accepted update and write its note.

        Raises
        ------
        OutputError
            If the disk is full or cannot be written.
        """
        self.updates[update.result.site] = update
        self._write_note(update)

    def drop(self, site: str) -> None:
        """Remove a site's update and its note."""
        update = self.updates.pop(site)
        self._note_path(site).unlink(missing_ok=True)
        self._transfer.drop_update(site, update.result.update or "")

    def accepted(
        self, sites: Sequence[str], rule: str | Mapping[str, int], scales: Mapping[str, float] | None = None
    ) -> StoredUpdates:
        """Return these sites' updates, in this order, for a strategy.

        Parameters
        ----------
        sites
            Names of sites with an accepted update.
        rule
            ``strategy.weights`` of the federation file.
        scales
            Site -> factor for its update, 1 by default.
        """
        results = {site: self.updates[site].result for site in sites}
        contents = {site: self._transfer.update(site, result.update or "") for site, result in results.items()}
        weights = site_weights(rule, {site: result.examples for site, result in results.items()})
        return StoredUpdates(results, weights, contents, self._size, self._encoding, scales)

    def close(self) -> None:
        """Remove all updates after the round is committed."""
        for site in list(self.updates):
            self.drop(site)

    def remove(self) -> None:
        """Remove all updates and the folder at the end of the run."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_note(self, update: AcceptedUpdate) -> None:
        """Write a note without flushing: the digest reveals damage from a power failure, and the round is repeated."""
        note = self._note_path(update.result.site)
        write_atomically(note, json.dumps(asdict(update)), durable=False, remedy=OWN_FILE)

    def _note_path(self, site: str) -> Path:
        return self._folder / f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.json"

    def _recover(self, file: Path, read_again: Callable[[Result], float | None]) -> AcceptedUpdate | None:
        """Return an update accepted in this round before a crash; if it no longer passes, remove its note."""
        try:
            content = json.loads(file.read_bytes())
            values = content.pop("result")
            for name in ("dice", "personal_dice"):
                values[name] = {int(label): float(value) for label, value in values[name].items()}
            found = AcceptedUpdate(result=Result(**values), **content)
            this_round = (found.result.run, found.result.round) == (self._run, self._round)
            norm = read_again(found.result) if this_round else None
            if norm is not None and math.isclose(norm, found.norm):
                return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        file.unlink(missing_ok=True)
        return None
