"""How much a site's update counts, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from common.errors import ConfigError
from server.site_weights import site_weights

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


def test_a_million_declared_patients_count_at_most_twice_as_much_as_the_median_of_the_others() -> None:
    assert site_weights("capped:2", PATIENTS | {"liar": 10**6})["liar"] == 2 * 37
    assert site_weights("capped:2", {"a": 10, "liar": 10**6}) == {"a": 10, "liar": 20}


def test_a_site_alone_counts_whatever_it_declares() -> None:
    assert site_weights("capped:2", {"a": 10**6}) == {"a": 10**6}


def test_similar_sites_count_as_their_patients() -> None:
    similar = {"a": 20, "b": 12, "c": 11}
    assert site_weights("capped:2", similar) == site_weights("patients", similar)


def test_a_site_without_a_number_is_named() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.weights: has no number for c"):
        site_weights({"a": 1, "b": 1}, PATIENTS)
