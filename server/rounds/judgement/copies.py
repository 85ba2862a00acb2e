"""Which updates are nearly copies: of the site's last update, of the model's last step, or of the model that was sent.

A site that trains draws other patches in every round, and its updates differ. One that sends on what it was sent (a
free-rider: Lin et al. 2019, arXiv 1911.12560), or its last update with a little noise or rounding, has not trained.
Exact copies and zeros are refused already (``server.rounds.admission``).

Earlier updates are gone, so a short sketch of each is kept: its values, with random signs, summed up in a few buckets
(Charikar et al. 2002). Sketches of vectors have the cosine of the vectors, to within 1/sqrt(``BUCKETS``) for vectors
that do not agree, and less the more they agree.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.protocol.codec import Vector
from server.rounds.strategies.strategy import Updates, Window
from server.run_store.state import RunState

BUCKETS = 128
NEAR_COPY = 0.98
"""Cosine from which an update is nearly a copy."""
LEAST_WEIGHTS = 1000
"""Updates with fewer weights that are not zero agree by chance."""
_PERIOD = 1_000_003
_SIGNS = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), _PERIOD)
_AT_A_TIME = 2**17

Sketch = NDArray[np.float64]


@dataclass(frozen=True)
class Copies:
    """How much a round's updates are like what the server knew before.

    Attributes
    ----------
    likeness
        Site -> highest cosine of its update to its last one, to the model's last step and to the model.
    sketches, model
        What the next round compares with, as in ``RunState``.
    """

    likeness: Mapping[str, float] = field(default_factory=dict)
    sketches: Mapping[str, str] = field(default_factory=dict)
    model: str = ""

    @property
    def copied(self) -> frozenset[str]:
        """Sites whose updates are nearly copies."""
        return frozenset(site for site, likeness in self.likeness.items() if likeness >= NEAR_COPY)


def find_copies(updates: Updates, model: Vector, state: RunState) -> Copies:
    """Compare the updates of a round with what the server knew before.

    Parameters
    ----------
    updates
        The updates; of each, only the first vector is compared.
    model
        The weights that the sites were sent.
    state
        State of the run before the round.
    """
    found = _sketches_of(updates)
    sent = sum((_folded(model[start : start + _AT_A_TIME], start) for start in range(0, model.size, _AT_A_TIME)), ZERO)
    before = _unpacked(state.model_sketch)
    known = {"model": sent} | ({} if before is None else {"step": sent - before})
    likeness = {}
    for site, sketch in found.items():
        last = _unpacked(state.sketches.get(site, ""))
        references = [*known.values(), *([] if last is None else [last])]
        likeness[site] = max(_cosine(sketch, reference) for reference in references)
    return Copies(likeness, {site: _packed(sketch) for site, sketch in found.items()}, _packed(sent))


ZERO: Sketch = np.zeros(BUCKETS)


def _sketches_of(updates: Updates) -> dict[str, Sketch]:
    """Return the sketch of every update that has enough weights."""
    sketches = dict.fromkeys(updates.results, ZERO)
    weights = dict.fromkeys(updates.results, 0)

    def fold(window: Window) -> dict[str, tuple[Sketch, int]]:
        start = window.where.start
        return {
            site: (_folded(update, start), int(np.count_nonzero(update))) for site, (update, *_) in window.updates()
        }

    for window in updates.each(fold):
        for site, (sketch, count) in window.items():
            sketches[site] = sketches[site] + sketch
            weights[site] += count
    return {site: sketch for site, sketch in sketches.items() if weights[site] >= LEAST_WEIGHTS}


def _folded(values: Vector, start: int) -> Sketch:
    """Return the sketch of a stretch of a vector that begins at ``start``."""
    before = start % BUCKETS
    signed = np.zeros(-(-(before + values.size) // BUCKETS) * BUCKETS, np.float32)
    signs = _SIGNS.take(np.arange(start, start + values.size), mode="wrap")
    np.multiply(values, signs, out=signed[before : before + values.size])
    folded: Sketch = signed.reshape(-1, BUCKETS).sum(axis=0, dtype=np.float64)
    return folded


def _cosine(left: Sketch, right: Sketch) -> float:
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths > 0 else 0.0


def _packed(sketch: Sketch) -> str:
    return base64.b64encode(sketch.astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> Sketch | None:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64) if text else None
