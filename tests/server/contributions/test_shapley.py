"""Shapley values against games whose values are known, and against all orders of the players."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.contributions.shapley import Worth, exact_shares, losses_without, sampled_shares

ADDED = {"a": 0.5, "b": -0.25, "c": 0.0, "d": 2.0, "e": 1.0}
PLAYERS = sorted(ADDED)


def additive(group: frozenset[str]) -> float:
    return 3.0 + math.fsum(ADDED[player] for player in group)


def gloves(group: frozenset[str]) -> float:
    """A pair needs the left glove of a and a right one of b or c: 2/3, 1/6 and 1/6, as textbooks have it."""
    return float("a" in group and bool(group & {"b", "c"}))


def by_all_orders(players: Sequence[str], worth: Worth) -> dict[str, float]:
    """The definition: the mean of what a player adds over all orders."""
    added = dict.fromkeys(players, 0.0)
    for order in itertools.permutations(players):
        for place, player in enumerate(order):
            added[player] += worth(frozenset(order[: place + 1])) - worth(frozenset(order[:place]))
    return {player: value / math.factorial(len(players)) for player, value in added.items()}


def random_game(seed: int, players: Sequence[str]) -> Worth:
    rng = np.random.default_rng(seed)
    groups = itertools.chain.from_iterable(itertools.combinations(players, size) for size in range(len(players) + 1))
    values = {frozenset(group): float(rng.normal()) for group in groups}
    return values.__getitem__


def sampled(players: Sequence[str], worth: Worth, orders: int = 50, tolerance: float = 0.0) -> dict[str, float]:
    return dict(sampled_shares(players, worth, orders, tolerance, np.random.default_rng(0)).values)


def test_in_an_additive_game_everybody_gets_what_they_add() -> None:
    assert dict(exact_shares(PLAYERS, additive).values) == pytest.approx(ADDED)
    assert losses_without(PLAYERS, additive) == pytest.approx(ADDED)
    assert sampled(PLAYERS, additive, 2) == pytest.approx(ADDED)
    assert max(sampled_shares(PLAYERS, additive, 9, 0, np.random.default_rng(0)).errors.values()) < 1e-12


def test_who_undoes_what_others_add_is_seen_although_all_together_gain_nothing() -> None:
    def worth(group: frozenset[str]) -> float:
        return 0.05 * ("a" in group) - 0.05 * ("e" in group)

    found = sampled("abcde", worth, 200, 0.002)
    assert found["a"] > 0.03
    assert found["e"] < -0.03
    assert max(abs(found[name]) for name in "bcd") < 0.02


def test_a_game_of_textbooks() -> None:
    assert dict(exact_shares("abc", gloves).values) == pytest.approx({"a": 2 / 3, "b": 1 / 6, "c": 1 / 6})
    assert losses_without("abc", gloves) == {"a": 1.0, "b": 0.0, "c": 0.0}


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_exact_values_are_the_mean_over_all_orders_and_add_up(seed: int, count: int) -> None:
    players = PLAYERS[:count]
    game = random_game(seed, players)
    shares = exact_shares(players, game)
    assert dict(shares.values) == pytest.approx(by_all_orders(players, game))
    assert math.fsum(shares.values.values()) == pytest.approx(game(frozenset(players)) - game(frozenset()))
    assert set(shares.errors.values()) == {0.0}


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 100.0])
def test_sampled_values_add_up_too(tolerance: float) -> None:
    game = random_game(3, PLAYERS)
    total = math.fsum(sampled(PLAYERS, game, 10, tolerance).values())
    assert total == pytest.approx(game(frozenset(PLAYERS)) - game(frozenset()))


def test_sampled_values_are_within_their_standard_errors_which_shrink() -> None:
    game = random_game(1, PLAYERS)
    expected = exact_shares(PLAYERS, game).values
    few, many = (sampled_shares(PLAYERS, game, orders, 0.0, np.random.default_rng(0)) for orders in (100, 6400))
    for player in PLAYERS:
        assert abs(many.values[player] - expected[player]) < 4 * many.errors[player]
        assert many.errors[player] == pytest.approx(few.errors[player] / 8, rel=0.3)


def test_players_who_add_the_same_get_the_same() -> None:
    def worth(group: frozenset[str]) -> float:
        return math.sqrt(len(group)) + 2.0 * ("c" in group)

    values = exact_shares("abcd", worth).values
    assert values["a"] == pytest.approx(values["b"]) == pytest.approx(values["d"])
    assert values["c"] == pytest.approx(values["a"] + 2)


def test_half_of_the_players_come_even_if_fewer_reach_everything() -> None:
    players = [f"p{index:02}" for index in range(12)]
    asked: set[frozenset[str]] = set()

    def worth(group: frozenset[str]) -> float:
        asked.add(group)
        return min(1.0, float(len(group)))

    sampled(players, worth, 5, 0.01)
    assert max(map(len, asked - {frozenset(players)})) == 6


def test_an_order_ends_once_the_rest_adds_next_to_nothing() -> None:
    """Any seven of twelve players reach everything; no larger group is asked for."""
    players = [f"p{index:02}" for index in range(12)]
    asked: set[frozenset[str]] = set()

    def worth(group: frozenset[str]) -> float:
        asked.add(group)
        return min(1.0, len(group) / 7)

    values = sampled(players, worth, 40, 0.01)
    assert max(map(len, asked - {frozenset(players)})) == 7
    assert values == pytest.approx(dict.fromkeys(players, 1 / 12), abs=0.1)
