"""Reads the accepted updates of a round together, window by window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.protocol.codec import Result, Vector
from common.weights.encoding import Encoding, Piece, pieces_of, read_window, vector_bytes, windows_of
from common.weights.store import Content
from server.rounds.strategies.strategy import Next, T, Window

AHEAD = 3
"""Number of pieces computed ahead."""


@dataclass(frozen=True)
class StoredWindow:
    """A window of updates on disk or in memory; each is read when requested."""

    where: slice
    _stretches: list[tuple[int, int]]
    _contents: Mapping[str, Content]
    _scales: Mapping[str, float]
    _vector_bytes: int
    _encoding: Encoding

    @property
    def size(self) -> int:
        """Return the number of weights it covers."""
        return int(self.where.stop - self.where.start)

    def updates(self) -> Iterator[tuple[str, tuple[Vector, ...]]]:
        """Yield each site with its vectors."""
        for site, content in self._contents.items():
            parts = np.split(content, range(self._vector_bytes, content.size, self._vector_bytes))
            vectors = (read_window(part, self._stretches, self.size, self._encoding) for part in parts)
            scale = np.float32(self._scales.get(site, 1.0))
            yield site, tuple(vectors) if scale == 1 else tuple(vector * scale for vector in vectors)


class StoredUpdates:
    """The accepted updates, as a strategy reads them.

    Parameters
    ----------
    results
        Site -> its reply, in the order in which windows yield the updates.
    weights
        Site -> how much its update counts.
    contents
        Site -> the bytes of its update: one vector of the model's size, or several one after another.
    size
        Number of values per vector.
    encoding
        Encoding of the vectors.
    scales
        Site -> factor for its vectors, 1 by default.
    """

    def __init__(
        self,
        results: Mapping[str, Result],
        weights: Mapping[str, float],
        contents: Mapping[str, Content],
        size: int,
        encoding: Encoding,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.results = results
        self.weights = weights
        self._contents = {site: contents[site] for site in results}
        self._size = size
        self._encoding = encoding
        self.scales = scales or {}

    def map(self, function: Callable[[Window], Next]) -> Iterator[Next]:
        """Call ``function`` for every window, and yield the results joined into pieces of the vector.

        A few pieces are computed ahead, in two threads.
        """

        def work(piece: Piece) -> Next:
            done = [function(window) for window in self._windows(piece)]
            state = {name: np.concatenate([part.state[name] for part in done]) for name in done[0].state}
            return Next(np.concatenate([part.weights for part in done]), state)

        return self._ahead(work)

    def each(self, function: Callable[[Window], T]) -> Iterator[T]:
        """Call ``function`` for every window, and yield the results in order; computed ahead as in ``map``."""
        for results in self._ahead(lambda piece: [function(window) for window in self._windows(piece)]):
            yield from results

    def _ahead(self, work: Callable[[Piece], T]) -> Iterator[T]:
        ahead: deque[Future[T]] = deque()
        with ThreadPoolExecutor(2) as pool:
            for piece in pieces_of(self._size, self._encoding):
                ahead.append(pool.submit(work, piece))
                if len(ahead) >= AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _windows(self, piece: Piece) -> Iterator[StoredWindow]:
        one = vector_bytes(self._size, self._encoding)
        for where, stretches in windows_of(piece, self._encoding):
            yield StoredWindow(where, stretches, self._contents, self.scales, one, self._encoding)
