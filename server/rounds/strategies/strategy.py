"""The contract of a strategy: how the accepted updates of a round become the next global model.

A strategy never holds a whole model. It reads all accepted updates together, one window after another, and returns the
same window of the next weights, so memory grows with neither the model nor the number of sites. ``fedavg`` is the
shortest example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from common.config.federation import FederationConfig
from common.protocol.codec import Result, Vector

T = TypeVar("T")


class Window(Protocol):
    """The same stretch of all accepted updates."""

    @property
    def where(self) -> slice:
        """Return its position in the flat vector of weights."""

    @property
    def size(self) -> int:
        """Return the number of weights it covers."""

    def updates(self) -> Iterator[tuple[str, tuple[Vector, ...]]]:
        """Yield each site with its vectors, float32 of ``size``: first the update, then any others.

        An update that was longer than the others' is scaled down already.
        """


@dataclass(frozen=True)
class Next:
    """A window of the next model.

    Attributes
    ----------
    weights
        Float32, as long as the window.
    state
        The same window of every vector in ``Strategy.state_vectors``.
    """

    weights: Vector
    state: Mapping[str, Vector] = field(default_factory=dict)


class Updates(Protocol):
    """All accepted updates of a round."""

    results: Mapping[str, Result]
    """Site -> the numbers of its reply, in the order in which windows yield the updates."""

    weights: Mapping[str, float]
    """Site -> how much its update counts (``strategy.weights``)."""

    scales: Mapping[str, float]
    """Site -> factor by which its update was scaled down already; without one it is as sent."""

    def map(self, function: Callable[[Window], Next]) -> Iterator[Next]:
        """Call ``function`` for every window, some ahead and in parallel, and yield the joined results in order."""

    def each(self, function: Callable[[Window], T]) -> Iterator[T]:
        """Call ``function`` for every window, some ahead and in parallel, and yield the results in order."""


@dataclass
class StrategyState:
    """State that a strategy keeps between rounds. It is part of the checkpoint and restored exactly.

    Attributes
    ----------
    vectors
        One float32 vector of the model's size for each name in ``Strategy.state_vectors``, read-only; zero at first.
    numbers
        Numbers that the strategy may change while it aggregates; they are committed with the round.
    """

    vectors: Mapping[str, Vector] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    """How a federation makes its next model."""

    @property
    def update_vectors(self) -> int:
        """Return how many vectors of the model's size a site sends per update, including the update itself."""

    @property
    def state_vectors(self) -> tuple[str, ...]:
        """Return the names of the vectors that the server keeps between rounds, such as a momentum."""

    def prepare(self, config: FederationConfig, sites: int) -> None:
        """Take what the strategy needs of its federation of so many sites, and refuse settings it does not support.

        Raises
        ------
        ConfigError
            Names the key and what to choose instead.
        """

    def aggregate(self, updates: Updates, weights: Vector, state: StrategyState) -> Iterator[Next]:
        """Yield the next model in order, one part at a time.

        Parameters
        ----------
        updates
            Accepted updates of at least one site.
        weights
            The model that the sites started from: float32, read-only, mapped from disk.
        state
            The state after the last accepted round.
        """


def remembered(updates: Updates) -> set[str]:
    """Return the sites whose updates go into what SCAFFOLD and FedDyn remember, at the server and at the site.

    Each update pulls at the model in all later rounds, until others take it back. What is n - 1 times as long as the
    n - 1 others' or longer, they cannot take back: sent round after round, it moves the model without end. So an update
    is remembered up to n - 2 times the length of the others' (twice, at least). A longer one counts in the mean alone,
    and its site goes on from the last round that is remembered.
    """
    most = max(2.0, len(updates.results) - 2.0)
    return {site for site in updates.results if updates.scales.get(site, 1.0) * most >= 1}


class OneVector:
    """What most strategies have in common: sites send updates alone, no state is kept, every federation will do."""

    update_vectors = 1
    state_vectors: tuple[str, ...] = ()

    def prepare(self, config: FederationConfig, sites: int) -> None:
        """Accept every federation."""
        del config, sites
