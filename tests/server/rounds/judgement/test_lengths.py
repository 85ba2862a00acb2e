"""How far updates are scaled down, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.weights.encoding import VALUES_PER_PIECE, WINDOW, Encoding
from server.rounds.judgement.lengths import MARGIN, scales
from server.rounds.strategies.fedavg import FedAvg
from server.rounds.strategies.strategy import StrategyState
from tests.server.rounds.strategies.test_strategy import ENCODINGS, drawn, stored


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({"a": 10.0, "b": 12.0, "c": 19.0}, {}),
        ({"a": 10.0, "b": 12.0, "liar": 54.0}, {"liar": 12 / 54}),
        ({"a": 10.0, "b": 12.0, "short": 1e-6}, {}),
        ({"a": 10.0, "b": 11.0, "c": 12.0, "x": 40.0, "y": 50.0}, {"x": 12 / 40, "y": 12 / 50}),
        ({"a": 10.0, "b": 40.0}, {"b": 10 / 40}),
        ({"a": 10.0}, {}),
    ],
)
def test_an_update_longer_than_the_others_is_scaled_down_to_their_median(
    norms: dict[str, float], expected: dict[str, float]
) -> None:
    assert scales(norms) == dict.fromkeys(norms, 1.0) | expected


def test_growing_by_a_twentieth_a_round_ends_at_the_margin() -> None:
    """The others' updates stay 10 long; after 30 rounds the liar's would be 43 long."""
    counted = []
    for number in range(30):
        norm = 10 * 1.05**number
        counted.append(norm * scales({"a": 10.0, "b": 10.0, "liar": norm})["liar"])
    assert max(counted) <= 10 * MARGIN


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_model_is_that_of_whole_scaled_vectors_to_the_last_bit(encoding: Encoding) -> None:
    size = VALUES_PER_PIECE[encoding] + WINDOW + 77
    updates, decoded = stored(drawn(size, "abc", 1), encoding, {"b": 0.3})
    weights = np.full(size, 3, np.float32)
    found = np.concatenate([step.weights for step in FedAvg().aggregate(updates, weights, StrategyState())])
    total = np.zeros(size, np.float64)
    for count, site in enumerate("abc", 1):
        vector = decoded[site][0] * np.float32(0.3) if site == "b" else decoded[site][0]
        total += count * vector.astype(np.float64)
    np.testing.assert_array_equal(found, weights + (total / 6).astype(np.float32))
