"""Vectors of the model's size that a site keeps between the rounds of a run, such as a control variate.

A file per round is written before the round's reply leaves, so whatever a crash or a lost reply makes the site repeat
starts from the vectors that the round started from. Files are safetensors. Each states its run, site and round, and the
SHA-256 of them and all values: a file that was changed, cut or copied from elsewhere is never read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import DamagedFileError
from common.protocol.codec import Vector
from common.system.files import OWN_FILE, PRIVATE, cannot_write, flush_folder, write_atomically
from common.system.state_file import CHANGED
from common.weights.safetensors_file import float32_header, read_shapes
from common.weights.store import MissingWeightsError, map_file

RESTORE = "restore it from a backup of the state folder, or ask the coordinator to begin a new run"
_FILE = re.compile(r"round_([0-9]{4,})\.safetensors")


@dataclass(frozen=True)
class Kept:
    """What a site kept: the round in which it was written, 0 if nothing was, and its vectors by name, read-only."""

    round: int = 0
    vectors: Mapping[str, Vector] = field(default_factory=dict)


class SiteVectors:
    """Vectors of one site, in a folder of its own for every run.

    Parameters
    ----------
    folder
        Created with the first vectors. Two purposes that keep vectors in the same run need two folders.
    site
        Name of the site.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder = folder
        self._site = site

    def read(self, run: str, before_round: int) -> Kept:
        """Return the newest vectors from before a round; no file changes.

        Raises
        ------
        DamagedFileError
            They were changed or cannot be read.
        """
        files = {number: file for number, file in self._files(run).items() if number < before_round}
        if not files:
            return Kept()
        newest = max(files)
        return Kept(newest, self._checked(files[newest], run, newest))

    def write(self, run: str, round_number: int, vectors: Mapping[str, Vector], started_from: int) -> None:
        """Keep the vectors after a round; they are on disk when this returns.

        Those that the round started from (``Kept.round``) stay too, since a round that does not count is followed by
        one that starts there again. All others are removed.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        values = {name: np.ascontiguousarray(vector, "<f4") for name, vector in vectors.items()}
        file = self.path(run, round_number)
        header = self._header(run, round_number, values)
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for partial in file.parent.glob(".*.part"):
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(file.parent, error) from None
        write_atomically(file, header, *(vector.data for vector in values.values()), mode=PRIVATE, remedy=OWN_FILE)
        try:
            flush_folder(file.parent)
        except OSError as error:
            raise cannot_write(file.parent, error) from None
        for number, other in self._files(run).items():
            if number not in (started_from, round_number):
                _remove(other)

    def path(self, run: str, round_number: int) -> Path:
        """Return the path of the vectors after a round."""
        return self._folder / run / f"round_{round_number:04d}.safetensors"

    def _files(self, run: str) -> dict[int, Path]:
        folder = self._folder / run
        found = {path: _FILE.fullmatch(path.name) for path in folder.iterdir()} if folder.is_dir() else {}
        return {int(name[1]): path for path, name in found.items() if name is not None}

    def _header(self, run: str, round_number: int, vectors: Mapping[str, Vector]) -> bytes:
        total = hashlib.sha256("\0".join((run, self._site, str(round_number), *vectors)).encode())
        for vector in vectors.values():
            total.update(vector.data)
        about = {"run": run, "site": self._site, "round": str(round_number), "sha256": total.hexdigest()}
        return float32_header({name: vector.shape for name, vector in vectors.items()}, about)

    def _checked(self, file: Path, run: str, round_number: int) -> dict[str, Vector]:
        vectors: dict[str, Vector] = {}
        try:
            sizes = {name: size for name, (size,) in read_shapes(file).items()}
            start = max(file.stat().st_size - 4 * sum(sizes.values()), 0)
            values = map_file(file, start).view("<f4")
            for name, size in sizes.items():
                vectors[name], values = values[:size], values[size:]
            with file.open("rb") as stream:
                header = stream.read(start)
        except OSError as error:
            raise DamagedFileError(file, f"cannot be read: {error.strerror or error}", RESTORE) from None
        except (ValueError, MissingWeightsError):
            header = b""
        if header != self._header(run, round_number, vectors):
            raise DamagedFileError(file, CHANGED, RESTORE)
        return vectors


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(file, error) from None
