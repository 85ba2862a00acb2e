"""The distribution of the privacy loss, composed numerically (Gopi, Lee and Wutschitz 2021).

The loss of one step is discretised on a grid, composed by fast Fourier transforms, and gives an upper bound on epsilon
that includes the errors of both. The bound holds if the losses beyond the grid have a part of ``delta_error`` and the
rounding to the grid one of ``epsilon_error`` (remark 5.6); ``common.privacy.accounting`` chooses the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.special import erfc

_REACH = 13.0  # standard deviations; what lies beyond is less than 1e-37
_LARGEST_LOSS = 700.0
_MOST_PANELS = 2**14
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class Grid:
    """Losses at equal distances: ``size``, an even number, of them from ``low`` to ``high``."""

    low: float
    high: float
    size: int

    @classmethod
    def around_zero(cls, reach: float, mesh: float) -> Grid:
        """Make a grid of multiples of ``mesh`` that spans -``reach`` to ``reach``."""
        first, last = math.floor(-reach / mesh), math.ceil(reach / mesh)
        last += (last - first + 1) % 2
        return cls(first * mesh, last * mesh, last - first + 1)

    @property
    def mesh(self) -> float:
        """The distance between neighbours."""
        return (self.high - self.low) / (self.size - 1)

    @property
    def losses(self) -> NDArray[np.float64]:
        """All losses, ascending, shape (size,)."""
        return np.linspace(self.low, self.high, self.size)


@dataclass(frozen=True)
class LossDistribution:
    """Probabilities of the losses of a grid, all moved by ``shift``."""

    grid: Grid
    probabilities: NDArray[np.float64]
    """Shape (size,)."""
    shift: float

    def repeated(self, times: int) -> LossDistribution:
        """Return the distribution of the sum of ``times`` such losses."""
        transform: NDArray[np.complex128] = fft.rfft(self.probabilities)
        probabilities = fft.irfft(transform**times)
        # The sum of losses that are counted from the middle of the grid is counted from there as well.
        moved = times - 1 + (self.grid.size // 2 if times % 2 == 0 else 0)
        return replace(self, probabilities=np.roll(probabilities, moved), shift=self.shift * times)

    def __add__(self, other: LossDistribution) -> LossDistribution:
        """Return the distribution of the sum of a loss of each, on the same grid."""
        length = fft.next_fast_len(2 * self.grid.size - 1, real=True)
        product = fft.rfft(self.probabilities, length) * fft.rfft(other.probabilities, length)
        start = (self.grid.size - 1) // 2
        probabilities = fft.irfft(product, length)[start : start + self.grid.size]
        return replace(self, probabilities=probabilities, shift=self.shift + other.shift)

    def epsilon(self, delta: float, delta_error: float, epsilon_error: float) -> float:
        """Return an upper bound on epsilon at ``delta``, given the errors of the discretisation.

        Raises
        ------
        ArithmeticError
            If rounding errors dominate, or exponentials overflow.
        """
        target = delta - delta_error
        if np.finfo(np.longdouble).eps * self.grid.size > target:
            raise ArithmeticError("rounding errors dominate: delta is too small for the grid")
        losses = self.grid.losses + self.shift
        if losses[-1] > _LARGEST_LOSS:
            raise ArithmeticError("the exponentials of these losses overflow")
        # delta(epsilon) = sum of p (1 - exp(epsilon - loss)) over the losses above epsilon
        above = np.flip(np.flip(self.probabilities).cumsum())
        weighted = np.flip(np.flip(self.probabilities * np.exp(-losses)).cumsum())
        first = int(np.searchsorted(np.exp(losses) * weighted - above, -target, side="left"))
        return float(np.log((above[first] - target) / weighted[first])) + epsilon_error


def loss_of_step(grid: Grid, noise: float, rate: float) -> LossDistribution:
    """Discretise the loss of one step of the Gaussian mechanism on patients who are drawn with probability ``rate``.

    The loss is log(1 - q + q exp((2 x - 1) / (2 s**2))) for x from the mixture of q N(1, s**2) and (1 - q) N(0, s**2).
    The loss is truncated to the grid, and the discrete distribution moved to have the same mean.

    Raises
    ------
    ArithmeticError
        If the grid holds none of the losses, or the noise is too small for numerical integration.
    """
    mesh = grid.mesh
    mass = _cumulative(np.array([grid.low, grid.high]), noise, rate)
    edges = np.linspace(grid.low - mesh / 2, grid.high + mesh / 2, grid.size + 1)
    cumulative = (_cumulative(np.clip(edges, grid.low, grid.high), noise, rate) - mass[0]) / (mass[1] - mass[0])
    probabilities = np.diff(cumulative)
    shift = _truncated_mean(grid, noise, rate) / (mass[1] - mass[0]) - float(np.dot(grid.losses, probabilities))
    if not abs(shift) < mesh / 2:  # neither is a number that is undefined
        raise ArithmeticError("the grid holds none of the losses")
    return LossDistribution(grid, probabilities, shift)


def compose(steps: Sequence[tuple[LossDistribution, int]]) -> LossDistribution:
    """Return the distribution of the sum of all losses, each repeated; all on the same grid."""
    return reduce(LossDistribution.__add__, (loss.repeated(times) for loss, times in steps))


def _outcome(losses: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    """Return the outcome x at which the loss is that, or minus infinity for losses that never occur."""
    if rate == 1:
        return noise**2 * losses + 0.5
    with np.errstate(divide="ignore"):
        return np.asarray(noise**2 * np.log(np.maximum(np.expm1(losses) / rate + 1, 0)) + 0.5)


def _cumulative(losses: NDArray[np.float64], noise: float, rate: float) -> NDArray[np.float64]:
    """Return the probability of at most that loss."""
    scaled = _outcome(losses, noise, rate) / (math.sqrt(2) * noise)
    one = 1 / (math.sqrt(2) * noise)
    return np.asarray(1 - rate * erfc(scaled - one) / 2 - (1 - rate) * erfc(scaled) / 2)


def _truncated_mean(grid: Grid, noise: float, rate: float) -> float:
    """Integrate loss times density over the grid's range, by Gauss's rule on panels."""
    low, high = (float(end) for end in _outcome(np.array([grid.low, grid.high]), noise, rate))
    low, high = max(low, -_REACH * noise), min(high, 1 + _REACH * noise)
    panels = math.ceil((high - low) / (noise * min(1.0, noise)))
    if panels > _MOST_PANELS:
        raise ArithmeticError("the noise is too small for numerical integration")
    edges = np.linspace(low, high, panels + 1)
    half = (high - low) / (2 * panels)
    x = (edges[:-1, None] + half * (1 + _NODES)).ravel()
    weights = np.tile(half * _NODE_WEIGHTS, panels) / (noise * math.sqrt(2 * math.pi))
    density = rate * np.exp(-(((x - 1) / noise) ** 2) / 2) + (1 - rate) * np.exp(-((x / noise) ** 2) / 2)
    not_taken = math.log1p(-rate) if rate < 1 else -math.inf
    losses = np.logaddexp(not_taken, math.log(rate) + (2 * x - 1) / (2 * noise**2))
    return float(np.sum(weights * density * losses))
