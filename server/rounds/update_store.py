"""The accepted updates of the round that is under way.

An update enters the model only when the norms of all of them are known, so it waits here, in the form in which it came.
It is mapped, not loaded: memory holds a window of it at a time, however large it is and however many sites there are.
A note is written of each update that passed admission, so that a crash does not make the server ask for it again.

Notes are named by a hash, because a site's name may hold anything in a simulation.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from common.errors import OutputError
from common.protocol.messages import Result
from common.system.files import OWN_FILE, write_atomically
from common.weights.encoding import Encoding
from server.rounds.admission import AcceptedUpdate
from server.rounds.aggregation import StoredUpdates
from server.rounds.weight_transfer import WeightTransfer


class UpdateStore:
    """The waiting updates of one round.

    Parameters
    ----------
    folder
        For notes, of all rounds one after another; made when needed.
    run, round_number
        What the updates answer.
    size
        Values of a vector.
    encoding
        The form in which vectors come.
    transfer
        Where the updates themselves are.
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
        """Recover what a crash left of this round, and remove all else.

        Parameters
        ----------
        read_again
            Reads a recovered update as if it had just come: its norm, or None if it does not count.
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
        """Note that an update is accepted.

        Raises
        ------
        OutputError
            If the disk is full or cannot be written.
        """
        self.updates[update.result.site] = update
        self._write_down(update)

    def drop(self, site: str) -> None:
        """Forget a site's update."""
        update = self.updates.pop(site)
        self._note(site).unlink(missing_ok=True)
        self._transfer.drop_update(site, update.result.update or "")

    def accepted(self, sites: Sequence[str]) -> StoredUpdates:
        """Return these sites' updates, for a strategy to read in this order."""
        results = {site: self.updates[site].result for site in sites}
        contents = {site: self._transfer.update(site, result.update or "") for site, result in results.items()}
        return StoredUpdates(results, contents, self._size, self._encoding)

    def close(self) -> None:
        """Forget all updates; the round is committed."""
        for site in list(self.updates):
            self.drop(site)

    def remove(self) -> None:
        """Remove everything; the run is over."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_down(self, update: AcceptedUpdate) -> None:
        """Not flushed to disk: after a power failure the digest shows what is whole, and a round can be repeated."""
        note = self._note(update.result.site)
        write_atomically(note, json.dumps(asdict(update)), durable=False, remedy=OWN_FILE)

    def _note(self, site: str) -> Path:
        return self._folder / f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.json"

    def _recover(self, file: Path, read_again: Callable[[Result], float | None]) -> AcceptedUpdate | None:
        """Return an update that was accepted before a crash; unless every byte is there, remove its note."""
        try:
            content = json.loads(file.read_bytes())
            values = content.pop("result")
            dice = {int(label): float(value) for label, value in values.pop("dice").items()}
            found = AcceptedUpdate(result=Result(**values, dice=dice), **content)
            this_round = (found.result.run, found.result.round) == (self._run, self._round)
            norm = read_again(found.result) if this_round else None
            if norm is not None and math.isclose(norm, found.norm):
                return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        file.unlink(missing_ok=True)
        return None
