"""The accepted updates of the round that is under way.

An update is folded into the model only when the norms of all of them are known, so it waits here, in the form in
which it came. It is mapped, not loaded: memory holds a window of it at a time, however large it is and however many
sites there are. What was accepted before a crash need not be asked for again: a note of it is written when all of it
was checked.

Notes are named by a hash, because a site's name may hold anything in a simulation.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common.errors import OutputError, ProtocolError
from common.protocol.codec import Vector
from common.protocol.messages import Result
from common.weights.encoding import Encoding, Piece, pieces_of, read_window, vector_bytes, windows_of
from common.weights.store import Content, MissingWeightsError, digest_of
from server.rounds.admission import RefusedError, measure
from server.rounds.aggregation import WeightedMean
from server.rounds.weight_transfer import WeightTransfer

AHEAD = 3
"""Pieces of a mean that are worked out before they are needed."""


@dataclass(frozen=True)
class AcceptedUpdate:
    """What is remembered of an update that passed ``measure``.

    Attributes
    ----------
    norm
        L2 norm.
    size
        bytes as sent.
    sha256
        what ``rounds.jsonl`` says of it.
    """

    result: Result
    norm: float
    size: int
    sha256: str


class UpdateStore:
    """The waiting updates of one round.

    Parameters
    ----------
    folder
        for notes, of all rounds one after another; made when needed.
    run, round_number
        what the updates answer.
    size
        values of an update.
    encoding
        the form in which updates come.
    transfer
        where the updates themselves are.
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

    def open(self) -> None:
        """Finds again what a crash left of this round, and removes notes of others."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be used: {error.strerror or error}") from None
        for file in sorted(self._folder.glob("*.json")):
            found = self._recover(file)
            if found is not None:
                self.updates[found.result.site] = found
        self._transfer.keep_updates({site: update.result.update or "" for site, update in self.updates.items()})

    def add(self, result: Result, sha256: str = "") -> AcceptedUpdate:
        """Reads an update once, window by window, and notes that it is accepted.

        Parameters
        ----------
        result
            the reply, which names it.
        sha256
            what ``rounds.jsonl`` shall say of it.

        Raises
        ------
        RefusedError, ProtocolError, MissingWeightsError
            it is not accepted, and nothing of it stays.
        OutputError
            the disk is full or cannot be written.
        """
        try:
            accepted = AcceptedUpdate(result, self._measured(result), self._bytes(), sha256)
        except (RefusedError, ProtocolError):
            self._transfer.drop_update(result.site, result.update or "")
            raise
        self.updates[result.site] = accepted
        self._write_down(accepted)
        return accepted

    def drop(self, site: str) -> None:
        """Forgets a site's update."""
        update = self.updates.pop(site)
        self._note(site).unlink(missing_ok=True)
        self._transfer.drop_update(site, update.result.update or "")

    def mean(self, weights: Mapping[str, float]) -> Iterator[tuple[slice, Vector]]:
        """The weighted mean of the named sites' updates, added up in the order of ``weights``.

        Yields
        ------
        tuple[slice, Vector]
            A part of the vector and its values, in order; a few are worked out ahead, in two threads.
        """
        contents = {site: self._content(self.updates[site].result) for site in weights}

        def add_up(piece: Piece) -> tuple[slice, Vector]:
            mean = np.empty(piece.count, np.float32)
            for where, stretches in windows_of(piece, self._encoding):
                part = WeightedMean(where.stop - where.start)
                for site, weight in weights.items():
                    part.add(read_window(contents[site], stretches, part.size, self._encoding), weight)
                mean[where.start - piece.start : where.stop - piece.start] = part.mean()
            return slice(piece.start, piece.start + piece.count), mean

        ahead: deque[Future[tuple[slice, Vector]]] = deque()
        with ThreadPoolExecutor(2) as pool:
            for piece in pieces_of(self._size, self._encoding):
                ahead.append(pool.submit(add_up, piece))
                if len(ahead) >= AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def close(self) -> None:
        """Forgets all updates; the round is committed."""
        for site in list(self.updates):
            self.drop(site)

    def remove(self) -> None:
        """Removes everything; the run is over."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _measured(self, result: Result) -> float:
        content = self._content(result)
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(digest_of, content)
            norm = measure(content, self._size, self._encoding)
            if digest.result() != result.update:
                raise ProtocolError("an update was changed or damaged after it came")
        return norm

    def _content(self, result: Result) -> Content:
        content = self._transfer.update(result.site, result.update or "")
        if content.size != self._bytes():
            raise ProtocolError(f"an update has {content.size} bytes, {self._bytes()} expected")
        return content

    def _write_down(self, update: AcceptedUpdate) -> None:
        """Not flushed to disk: the digest tells after a power failure what is whole, and a round can be repeated."""
        note = self._note(update.result.site)
        half = note.with_suffix(".part")
        try:
            half.write_text(json.dumps(asdict(update)), encoding="utf-8")
            half.replace(note)
        except OSError as error:
            raise OutputError(f"{half}: cannot be written: {error.strerror or error}; free space") from None

    def _note(self, site: str) -> Path:
        return self._folder / f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.json"

    def _recover(self, file: Path) -> AcceptedUpdate | None:
        """An update that was accepted before a crash; None, and nothing of it stays, unless every byte is there."""
        try:
            content = json.loads(file.read_bytes())
            values = content.pop("result")
            dice = {int(label): float(value) for label, value in values.pop("dice").items()}
            found = AcceptedUpdate(result=Result(**values, dice=dice), **content)
            this_round = (found.result.run, found.result.round) == (self._run, self._round)
            if this_round and math.isclose(self._measured(found.result), found.norm):
                return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        except (RefusedError, ProtocolError, MissingWeightsError):
            pass
        file.unlink(missing_ok=True)
        return None

    def _bytes(self) -> int:
        return vector_bytes(self._size, self._encoding)
