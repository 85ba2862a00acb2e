"""Who opposes whom, against whole vectors and made-up directions."""

from __future__ import annotations

import numpy as np
import pytest

from common.protocol.codec import Vector
from common.weights.encoding import VALUES_PER_PIECE, WINDOW, Encoding
from server.rounds.judgement.directions import Directions, compare_directions
from tests.server.rounds.strategies.test_strategy import ENCODINGS, drawn, stored

SIZE = 20_000


def compared(vectors: dict[str, Vector], encoding: Encoding = "float32") -> Directions:
    updates, decoded = stored({site: [vector] for site, vector in vectors.items()}, encoding)
    return compare_directions(updates, {site: float(np.linalg.norm(vector)) for site, (vector,) in decoded.items()})


def sites(agreement: float, names: str = "abc", size: int = SIZE) -> dict[str, Vector]:
    """Directions with about this cosine to each other."""
    random = np.random.default_rng(0)
    common = random.standard_normal(size)
    share = np.sqrt(agreement)
    noise = {name: random.standard_normal(size) for name in names}
    return {name: (share * common + np.sqrt(1 - share**2) * noise[name]).astype(np.float32) for name in names}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cosines_are_those_of_whole_vectors(encoding: Encoding) -> None:
    size = VALUES_PER_PIECE[encoding] + WINDOW + 77
    updates, decoded = stored(drawn(size, "abcd", 2), encoding)
    unit = {site: several[0] / np.linalg.norm(several[0].astype(np.float64)) for site, several in decoded.items()}
    found = compare_directions(updates, {site: float(np.linalg.norm(decoded[site][0])) for site in "abcd"})
    for site in "abcd":
        rest = sum(unit[other] for other in "abcd" if other != site)
        assert found.cosines[site] == pytest.approx(unit[site] @ rest / np.linalg.norm(rest), abs=1e-4)


@pytest.mark.parametrize("length", [1.0, 2.0, 4.5, 1e-3])
@pytest.mark.parametrize("agreement", [0.4, 0.6, 0.9])
def test_one_of_three_that_flips_its_sign_is_named_alone(length: float, agreement: float) -> None:
    updates = sites(agreement)
    found = compared(updates | {"c": (-length * updates["c"]).astype(np.float32)})
    assert (found.opposed, found.disputed) == (frozenset("c"), frozenset())


def test_of_similar_sites_only_the_liar_is_named() -> None:
    """Site a is most like the liar's own patients, so it looks opposed until the liar is set aside."""
    updates = sites(0.5)
    updates["a"] = updates["a"] + updates["c"]
    found = compared(updates | {"c": -updates["c"]})
    assert found.opposed == frozenset("c")


def test_two_liars_of_five_are_named() -> None:
    updates = sites(0.5, "abcde")
    found = compared(updates | {name: -4 * updates[name] for name in "de"})
    assert (found.opposed, found.disputed) == (frozenset("de"), frozenset())


@pytest.mark.parametrize(
    ("names", "flipped"),
    [("ab", "b"), ("abcd", "cd")],
    ids=["one of two", "two of four"],
)
def test_without_a_majority_nobody_is_named_alone(names: str, flipped: str) -> None:
    updates = sites(0.5, names)
    found = compared(updates | {name: -updates[name] for name in flipped})
    assert (found.opposed, found.disputed) == (frozenset(), frozenset(names))


def test_unrelated_updates_oppose_nobody() -> None:
    """Noise alone, as under differential privacy; of 36 weights, too, which agree or not by chance."""
    for size in (36, SIZE):
        assert compared(sites(0.0, "abcde", size)).opposed == frozenset()
    assert compared(sites(0.5, "a")) == Directions()


def test_a_flipped_update_among_sites_that_hardly_agree() -> None:
    """The less honest sites agree, the nearer their opposite is to them; among unrelated ones it says nothing."""

    def flipped(agreement: float) -> Directions:
        updates = sites(agreement)
        return compared(updates | {"c": -updates["c"]})

    assert (flipped(0.25).opposed, flipped(0.25).leaning) == (frozenset("c"), frozenset())
    assert (flipped(0.15).opposed, flipped(0.15).leaning) == (frozenset(), frozenset("c"))
    assert flipped(0.15).cosines["c"] == pytest.approx(-0.2, abs=0.02)
    unrelated = sites(0.0)
    against = compared(unrelated | {"c": unrelated["c"] - 0.27 * (unrelated["a"] + unrelated["b"])})
    assert -0.4 < against.cosines["c"] < -0.3
    assert (against.opposed, against.leaning) == (frozenset(), frozenset())


def test_honest_sites_neither_lean_nor_oppose() -> None:
    for found in [compared(sites(0.25)), *(compared(sites(0.0, "abcde", size)) for size in (36, 200, SIZE))]:
        assert not found.leaning | found.opposed


def test_short_updates_at_the_end_oppose_nobody() -> None:
    """Each site pulls towards its own patients, and the sum is nearly nothing: honest sites look like liars."""
    updates = sites(0.6)
    updates["c"] = -updates["c"]
    norms = {site: float(np.linalg.norm(vector)) for site, vector in updates.items()}
    read, _ = stored({site: [vector] for site, vector in updates.items()}, "float32")
    assert compare_directions(read, norms, 2.9 * norms["a"]).opposed == frozenset("c")
    late = compare_directions(read, norms, 3.1 * norms["a"])
    assert (late.opposed, late.disputed) == (frozenset(), frozenset())
    assert late.cosines["c"] < 0
