"""Shapley values of a game: exact, or from random orders of its players.

The value of a player is the mean of what they add over all orders in which players can come (Shapley 1953). Sampling
orders, and breaking each off once the rest adds next to nothing, is truncated Monte Carlo (Ghorbani and Zou 2019,
"Data Shapley", arXiv 1904.02868).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

Worth = Callable[[frozenset[str]], float]
"""What some of the players reach together."""


@dataclass(frozen=True)
class Shares:
    """Shapley values, which add up to what all players reach together beyond what none do.

    Attributes
    ----------
    values
        Player -> value.
    errors
        Player -> standard error of the value over the random orders; 0 if it is exact.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]


def exact_shares(players: Sequence[str], worth: Worth) -> Shares:
    """Return the Shapley values; ``worth`` is asked for all 2^n sets of players."""
    count = len(players)
    values = {}
    for player in players:
        others = [other for other in players if other != player]
        values[player] = math.fsum(
            (worth(frozenset({*group, player})) - worth(frozenset(group))) / (count * math.comb(count - 1, size))
            for size in range(count)
            for group in combinations(others, size)
        )
    return Shares(values, dict.fromkeys(players, 0.0))


def sampled_shares(
    players: Sequence[str], worth: Worth, orders: int, tolerance: float, rng: np.random.Generator
) -> Shares:
    """Return estimates of the Shapley values from random orders.

    Parameters
    ----------
    players
        At least one.
    worth
        What some of the players reach together.
    orders
        How many orders to draw, at least 2.
    tolerance
        An order ends once half of the players or more reach all but this much of what everybody reaches. The rest is
        shared equally among those who would have come later, so that the values still add up. Not before: where all
        reach nothing together, some may still undo what others add.
    rng
        Draws the orders.
    """
    whole, least = worth(frozenset(players)), (len(players) + 1) // 2
    added = np.zeros((orders, len(players)))
    for order in range(orders):
        reached, before = worth(frozenset()), frozenset[str]()
        positions = [int(place) for place in rng.permutation(len(players))]
        for place, position in enumerate(positions):
            if place >= least and abs(whole - reached) <= tolerance:
                rest = positions[place:]
                added[order, rest] = (whole - reached) / len(rest)
                break
            before |= {players[position]}
            following = worth(before)
            added[order, position] = following - reached
            reached = following
    means, errors = added.mean(axis=0), added.std(axis=0, ddof=1) / math.sqrt(orders)
    return Shares(dict(zip(players, means.tolist(), strict=True)), dict(zip(players, errors.tolist(), strict=True)))


def losses_without(players: Sequence[str], worth: Worth) -> dict[str, float]:
    """Return by how much all players reach more than all but one (leave one out)."""
    everybody = frozenset(players)
    return {player: worth(everybody) - worth(everybody - {player}) for player in players}
