"""How much a site's update counts, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from common.errors import ConfigError
from server.site_weights import overstated, site_weights

PATIENTS = {"a": 117, "b": 37, "c": 23}


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("patients", (117, 37, 23)),
        ("uniform", (1, 1, 1)),
        ("capped:2", (2 * (37 + 23) / 2, 37, 23)),
        ("capped:1.5", (1.5 * (37 + 23) / 2, 37, 23)),
        ({"a": 3, "b": 2, "c": 1}, (3, 2, 1)),
    ],
)
def test_weights(rule: str | Mapping[str, int], weights: tuple[float, ...]) -> None:
    assert site_weights(rule, PATIENTS) == dict(zip("abc", weights, strict=True))


@pytest.mark.parametrize("name", ["0", "bb", "z"], ids=["first", "in the middle", "last"])
def test_a_million_declared_patients_count_as_the_median_of_the_others(name: str) -> None:
    patients = PATIENTS | {name: 10**6}
    assert site_weights("capped:2", patients) == {"a": 2 * 37, "b": 37, "c": 23, name: 37}
    assert overstated("capped:2", patients) == {name: 37}


def test_of_two_sites_one_with_a_million_patients_counts_as_much_as_the_other() -> None:
    assert site_weights("capped:2", {"a": 10, "liar": 10**6}) == {"a": 10, "liar": 10}


@pytest.mark.parametrize(
    ("rule", "count", "weight"),
    [("capped:2", 100, 20), ("capped:2", 101, 10), ("capped:20", 200, 200), ("capped:20", 201, 10)],
)
def test_up_to_ten_times_the_median_and_up_to_the_cap_is_believed(rule: str, count: int, weight: float) -> None:
    patients = {"a": 10, "b": 10, "c": count}
    assert site_weights(rule, patients)["c"] == weight
    assert (overstated(rule, patients) == {}) == (weight != 10)


def test_in_a_small_federation_a_larger_site_is_believed() -> None:
    assert overstated("capped:2", {"a": 1, "b": 13, "c": 1}) == {}
    assert site_weights("capped:2", {"a": 1, "b": 13, "c": 1})["b"] == 2


@pytest.mark.parametrize("rule", ["patients", "uniform", {"a": 1, "b": 1, "c": 1, "liar": 1}])
def test_other_rules_call_nothing_overstated(rule: str | Mapping[str, int]) -> None:
    assert overstated(rule, PATIENTS | {"liar": 10**6}) == {}


def test_a_site_alone_counts_whatever_it_declares() -> None:
    assert site_weights("capped:2", {"a": 10**6}) == {"a": 10**6}


def test_similar_sites_count_as_their_patients() -> None:
    similar = {"a": 20, "b": 12, "c": 11}
    assert site_weights("capped:2", similar) == site_weights("patients", similar)


def test_a_site_without_a_number_is_named() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.weights: has no number for c"):
        site_weights({"a": 1, "b": 1}, PATIENTS)
