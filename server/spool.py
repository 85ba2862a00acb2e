"""The updates of the round that is under way, on disk.

An update is folded into the model only when the norms of all of them are known, so it waits here, in the form in
which it came. Memory then holds one reply and one piece at a time, however many sites there are, and what was accepted
before a crash need not be asked for again: ``NAME.json`` is written after ``NAME.update`` and holds its digest.

Files are named by a hash, because a site's name may hold anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import OutputError, ProtocolError
from common.messages import Result
from common.protocol import Update, digest_of, piece_array
from common.transport import Encoding, Piece, Vector, decode, encoded_bytes, pieces_of, windows_of
from server.admission import RefusedError, measure
from server.aggregation import WeightedMean


@dataclass(frozen=True)
class SpooledUpdate:
    """What is remembered of an update that passed ``measure``.

    norm: L2 norm; size: bytes as sent; digest: of the update; sha256: of the whole reply.
    """

    result: Result
    norm: float
    size: int
    digest: str
    sha256: str


class Spool:
    """The waiting updates of one round.

    Args:
        folder: for the spools of all rounds, one after another; made when needed.
        run, round_number: what the updates answer.
        size: values of an update.
        encoding: the form in which updates come.
    """

    def __init__(self, folder: Path, run: str, round_number: int, size: int, encoding: Encoding) -> None:
        self._folder = folder
        self._run = run
        self._round = round_number
        self._size = size
        self._encoding = encoding
        self.updates: dict[str, SpooledUpdate] = {}

    def open(self) -> None:
        """Makes the folder, finds again what a crash left of this round in it, and removes what is of others."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be used: {error.strerror or error}") from None
        for file in sorted(self._folder.glob("*.json")):
            found = self._recover(file)
            if found is not None:
                self.updates[found.result.site] = found

    def add(self, result: Result, update: Update, sha256: str = "") -> SpooledUpdate:
        """Checks an update's values while writing them down.

        Args:
            result, update: the reply.
            sha256: of the reply, to be remembered.

        Raises:
            RefusedError, ProtocolError: as ``measure``; nothing of the update stays.
            OutputError: the disk is full or cannot be written.
        """
        path = self._path(result.site)
        try:
            with self._open(path) as stream:
                norm = measure(update, stream.write)
                stream.truncate()
        except (RefusedError, ProtocolError):
            path.unlink(missing_ok=True)
            raise
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}; free space") from None
        size = sum(len(data) for data in update.data)
        spooled = SpooledUpdate(result, norm, size, update.digest, sha256)
        self.updates[result.site] = spooled
        self._write_down(path, spooled)
        return spooled

    def drop(self, site: str) -> None:
        """Forgets a site's update."""
        del self.updates[site]
        for suffix in (".json", ".update"):
            self._path(site).with_suffix(suffix).unlink(missing_ok=True)

    def mean(self, weights: Mapping[str, float]) -> Vector:
        """The weighted mean of the named sites' updates, added up in the order of ``weights``, two pieces at a time."""
        mean = np.empty(self._size, np.float32)
        with ExitStack() as stack:
            files = {site: stack.enter_context(self._path(site).open("rb")).fileno() for site in weights}

            def add_up(piece: Piece) -> None:
                for where, stretches in windows_of(piece, self._encoding):
                    part = WeightedMean(where.stop - where.start)
                    for site, weight in weights.items():
                        data = b"".join(os.pread(files[site], size, offset) for offset, size in stretches)
                        part.add(decode(data, part.size, self._encoding), weight)
                    mean[where] = part.mean()

            pool = stack.enter_context(ThreadPoolExecutor(2))
            for done in [pool.submit(add_up, piece) for piece in pieces_of(self._size, self._encoding)]:
                done.result()
        return mean

    def close(self) -> None:
        """Forgets all updates; the round is committed. Their files stay, for those of the next round."""
        self.updates.clear()
        for note in self._folder.glob("*.json"):
            note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes everything; the run is over."""
        self.updates.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, path: Path) -> BinaryIO:
        """A file to be written from its beginning; one that exists is written over, which takes a tenth of the time."""
        try:
            return path.open("r+b")
        except FileNotFoundError:
            return path.open("xb")

    def _write_down(self, path: Path, spooled: SpooledUpdate) -> None:
        """Not flushed to disk: the digest tells after a power failure what is whole, and a round can be repeated."""
        half = path.with_suffix(".part")
        try:
            half.write_text(json.dumps(asdict(spooled)), encoding="utf-8")
            half.replace(path.with_suffix(".json"))
        except OSError as error:
            raise OutputError(f"{half}: cannot be written: {error.strerror or error}; free space") from None

    def _path(self, site: str) -> Path:
        return self._folder / f"{hashlib.sha256(site.encode()).hexdigest()[:24]}.update"

    def _recover(self, file: Path) -> SpooledUpdate | None:
        """An update that was accepted before a crash; None, and nothing of it stays, unless every byte is there."""
        update = file.with_suffix(".update")
        try:
            content = json.loads(file.read_bytes())
            values = content.pop("result")
            dice = {int(label): float(value) for label, value in values.pop("dice").items()}
            found = SpooledUpdate(result=Result(**values, dice=dice), **content)
            whole = self._digest(update) == found.digest and math.isfinite(found.norm) and found.size == self._bytes()
            if whole and (found.result.run, found.result.round) == (self._run, self._round):
                return found
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        file.unlink(missing_ok=True)
        update.unlink(missing_ok=True)
        return None

    def _digest(self, file: Path) -> str | None:
        if file.stat().st_size != self._bytes():
            return None
        with file.open("rb") as stream:
            pieces = pieces_of(self._size, self._encoding)
            return digest_of(piece_array(piece, stream.read(piece.size), self._encoding) for piece in pieces)

    def _bytes(self) -> int:
        return sum(encoded_bytes(piece.count, self._encoding) for piece in pieces_of(self._size, self._encoding))
