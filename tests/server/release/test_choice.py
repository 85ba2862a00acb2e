"""The released round: chosen by most sites, and by none alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from server.release.choice import Choice, Scores, choose

LEARNING = {"a": [0.0, 0.3, 0.6, 0.7, 0.72], "b": [0.02, 0.2, 0.5, 0.74, 0.7], "c": [0.01, 0.25, 0.55, 0.68, 0.75]}


def scores(**sites: list[float]) -> Scores:
    rounds = len(next(iter(sites.values())))
    return {number: {site: values[number] for site, values in sites.items()} for number in range(rounds)}


def chosen(scores: Scores, kept: Collection[int] | None = None, **values: Any) -> Choice:
    choice = choose(scores, scores if kept is None else kept, **values)
    assert choice is not None
    return choice


def test_the_median_over_sites_chooses() -> None:
    choice = chosen(scores(**LEARNING))
    assert (choice.round, choice.score, choice.left_out, choice.disputed) == (4, 0.72, None, ())


def test_of_equal_rounds_the_earliest_is_chosen_and_under_noise_the_latest() -> None:
    equal = scores(a=[0.1, 0.5, 0.5, 0.49])
    assert chosen(equal).round == 1
    assert chosen(equal, noise=0.05).round == 3


@pytest.mark.parametrize(
    "claims",
    [[1.0] * 5, [1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0.0] * 5, [0.9, 0.7, 0.5, 0.3, 0.1]],
    ids=["always", "first", "second", "never", "backwards"],
)
def test_one_site_of_three_that_claims_what_it_likes_changes_nothing_that_matters(claims: list[float]) -> None:
    honest = {name: LEARNING[name] for name in "ab"}
    choice = chosen(scores(**honest, liar=claims))
    best = max(np.mean([honest[name][number] for name in "ab"]) for number in range(5))
    assert np.mean([honest[name][choice.round] for name in "ab"]) >= best - 0.02


def test_scores_that_no_other_site_supports_are_left_out_and_named() -> None:
    """Sites score at different levels: the median alone would take round 1, which both honest sites think worse of."""
    choice = chosen(scores(easy=[0.6, 0.9], hard=[0.2, 0.4], liar=[1.0, 0.0]))
    assert (choice.round, choice.left_out, choice.disputed) == (1, "liar", ())
    assert choice.score == pytest.approx(0.65)


def test_two_sites_that_disagree_leave_the_choice_to_a_person() -> None:
    choice = chosen(scores(a=[0.0, 0.3, 0.7], b=[1.0, 0.0, 0.0]))
    assert choice.left_out is None and choice.disputed
    assert choice.candidates == {0, 2}


def test_two_honest_sites_whose_dice_vary_by_a_little_agree() -> None:
    """Each has a best round of its own; the chosen one is nearly as good for both."""
    honest = {"a": [0.0, 0.35, 0.60, 0.58, 0.62], "b": [0.0, 0.30, 0.47, 0.52, 0.46]}
    choice = chosen(scores(**honest))
    assert (choice.round, choice.disputed) == (3, ())
    apart = chosen(scores(a=[0.0, 0.3, 0.5, 0.7], b=[0.0, 0.6, 0.5, 0.4]))
    assert apart.disputed


def test_a_site_in_quarantine_has_no_say() -> None:
    choice = chosen(scores(a=[0.0, 0.3, 0.7], b=[1.0, 0.0, 0.0]), excluded=["b"])
    assert (choice.round, choice.disputed) == (2, ())


def test_what_may_still_be_chosen_is_found_round_by_round() -> None:
    """Choosing among the candidates so far and the newest round gives what choosing among all rounds gives."""
    random = np.random.default_rng(0)
    for _ in range(200):
        rounds = {number: dict(zip("abc", random.uniform(size=3), strict=True)) for number in range(12)}
        kept: set[int] = set()
        for number in range(12):
            choice = chosen({known: rounds[known] for known in range(number + 1)}, kept={*kept, number})
            kept = choice.candidates
        assert choice == chosen(rounds)


def test_without_scores_there_is_no_choice() -> None:
    assert choose({}, {0}) is None and choose({0: {}}, {0}) is None and choose({0: {"a": 1.0}}, ()) is None
