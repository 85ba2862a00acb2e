"""Discrete Gaussian noise for differential privacy, from a cryptographic generator.

What a patient contributes is an integer, the noise is an integer, and so is what leaves the site: a multiple of a
public step. Floating-point noise would tell the exact value behind it by its last bits (Mironov 2012).
"""

from __future__ import annotations

import os
from decimal import Decimal, localcontext

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from common.imaging.threads import map_in_threads

DEVIATION = 50_000_000
"""Standard deviation of the noise, in steps of the grid.

So fine that cutting a contribution down to whole steps loses next to nothing, even in a vector of millions of values
that is as long as the noise in one of them.
"""

_MOST_STEPS = 2**53
# Floating-point arithmetic lengthens a clipped vector by less than this: three roundings to 2**-24 each.
_MARGIN = 1 - 2.0**-20
_STRIPS = 128
_STRIP_BITS = 22
_BLOCK = 2**15
# Bytes of random words per candidate: one word for the strip, one for the decision, half a word for place and sign.
_CANDIDATE_BYTES = 20


def steps_of(multiplier: float) -> float:
    """Return the length of one patient's largest contribution, in steps of the grid.

    It is ``DEVIATION / multiplier``, less a margin for the rounding errors of clipping in float32.

    Parameters
    ----------
    multiplier
        Standard deviation of the noise in units of that contribution.

    Raises
    ------
    ValueError
        The noise is so weak that the steps are finer than the numbers they divide.
    """
    if not multiplier * _MOST_STEPS > DEVIATION:
        raise ValueError(f"a noise of {multiplier:g} times a contribution is too weak to hide it")
    return DEVIATION / multiplier * _MARGIN


class DiscreteGaussian:
    """Integers k with probability proportional to exp(-k**2 / (2 DEVIATION**2)) (Canonne, Kamath and Steinke 2020).

    A candidate is drawn from 128 strips of equal width, uniformly within a strip, and accepted so that the result has
    the right distribution (rejection sampling). The strips end at 10.7 standard deviations; 7e-27 of the distribution
    lies beyond. Within 8.5 standard deviations each probability is right to a factor of 1 + 2**-48.

    Random words are the key stream of AES-256 in counter mode. The same key gives the same noise, on any machine.

    Parameters
    ----------
    key
        32 secret bytes; at a hospital from the operating system's cryptographic generator.
    """

    def __init__(self, key: bytes) -> None:
        self._key = AES256(key)
        self._draws = 0

    def draw(self, size: int) -> NDArray[np.int32]:
        """Return ``size`` values that no other call has returned or will return.

        Takes some 30 ns of processor time per value; blocks of values are drawn in as many threads as there are cores.
        """
        values = np.empty(size, np.int32)
        draw, self._draws = self._draws, self._draws + 1

        def fill(start: int) -> None:
            _fill(values[start : start + _BLOCK], self._words(draw, start // _BLOCK))

        starts = range(0, size, _BLOCK)
        map_in_threads(fill, starts, min(len(starts), os.cpu_count() or 1))
        return values

    def _words(self, draw: int, block: int) -> _KeyStream:
        # 2**32 blocks per draw and 2**32 blocks of 16 bytes in each: no part of the key stream is used twice.
        nonce = draw.to_bytes(8, "big") + block.to_bytes(4, "big") + bytes(4)
        return _KeyStream(self._key, nonce)


class _KeyStream:
    """Random bytes of one block of noise."""

    def __init__(self, key: AES256, nonce: bytes) -> None:
        self._stream = Cipher(key, CTR(nonce)).encryptor()

    def read(self, size: int) -> bytes:
        return self._stream.update(bytes(size))


def _fill(values: NDArray[np.int32], stream: _KeyStream) -> None:
    filled = 0
    while (wanted := values.size - filled) > 0:
        # About one candidate in 27 is rejected.
        accepted = _candidates(stream, wanted * 17 // 16 + 16)[:wanted]
        values[filled : filled + accepted.size] = accepted
        filled += accepted.size


def _candidates(stream: _KeyStream, count: int) -> NDArray[np.int32]:
    random = stream.read(count * _CANDIDATE_BYTES)
    words = np.frombuffer(random, "<u8", 2 * count)
    place = np.frombuffer(random, "<u4", count, offset=16 * count)
    # Alias method (Walker 1977): a column, and in it one of two strips.
    column = (words[:count] >> np.uint64(57)).astype(np.intp)
    other = (words[:count] & np.uint64(2**57 - 1)) >= _THRESHOLDS[column]
    strip = np.where(other, _ALIASES[column], column)
    inside = place & np.uint32(2**_STRIP_BITS - 1)
    beyond = inside * (1 / DEVIATION)
    limit = np.exp(beyond * (_TWICE_STARTS[strip] + beyond) * -0.5) * _LIMITS[strip]
    keep = (words[count:] >> np.uint64(11)) < limit
    negative = (place >> np.uint32(31)).astype(bool)
    size = (strip << _STRIP_BITS) | inside
    # Zero has no sign; without this it would come up twice as often as it should.
    keep &= ~(negative & (size == 0))
    signed: NDArray[np.int32] = np.where(negative, -size, size)[keep].astype(np.int32)
    return signed


def _strip_densities() -> list[Decimal]:
    """Return exp(-start**2 / 2) of each strip's start in standard deviations: the largest density in the strip."""
    with localcontext(prec=50):
        return [(-((Decimal(strip << _STRIP_BITS) / DEVIATION) ** 2) / 2).exp() for strip in range(_STRIPS)]


def _strip_weights(densities: list[Decimal]) -> list[int]:
    """Return the probability of each strip as a candidate's, in units of 2**-64: in proportion to its density."""
    total = sum(densities)
    weights = [int(2**64 * density / total) + 1 for density in densities]
    weights[0] += 2**64 - sum(weights)
    return weights


def _alias_table(weights: list[int]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Return per column how much of its 2**57 units belongs to its own strip, and the strip that has the rest."""
    full = 2**57
    thresholds, aliases = np.empty(_STRIPS, np.uint64), np.arange(_STRIPS, dtype=np.intp)
    rest = list(weights)
    small = [strip for strip, weight in enumerate(rest) if weight < full]
    large = [strip for strip, weight in enumerate(rest) if weight >= full]
    while small:
        poor, rich = small.pop(), large.pop()
        thresholds[poor], aliases[poor] = rest[poor], rich
        rest[rich] -= full - rest[poor]
        (small if rest[rich] < full else large).append(rich)
    thresholds[large] = full
    return thresholds, aliases


def _limits(densities: list[Decimal], weights: list[int]) -> NDArray[np.float64]:
    """Return how many of 2**53 random words accept the first value of each strip.

    The number of candidates there, times this, is in proportion to the density. No limit exceeds 2**53.
    """
    with localcontext(prec=50):
        ratios = [density / weight for density, weight in zip(densities, weights, strict=True)]
        largest = max(ratios)
        return np.array([float(2**53 * ratio / largest) for ratio in ratios])


_DENSITIES = _strip_densities()
_WEIGHTS = _strip_weights(_DENSITIES)
_THRESHOLDS, _ALIASES = _alias_table(_WEIGHTS)
_LIMITS = _limits(_DENSITIES, _WEIGHTS)
_TWICE_STARTS = np.array([2 * (strip << _STRIP_BITS) / DEVIATION for strip in range(_STRIPS)])
