"""A delta above 1/n is told, and nothing that privacy does not pay for is asked."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from common.config.privacy import delta_warning
from tests import tiny


@pytest.mark.parametrize(("delta", "patients"), [(1e-5, 5000), (0.009, 111), (0.001, 1000), (0.009, 0)])
def test_a_small_delta_is_not_worth_a_word(delta: float, patients: int) -> None:
    assert delta_warning(delta, patients) is None


def test_a_delta_above_one_patient_is_warned_of() -> None:
    warning = delta_warning(0.009, 5000)
    assert warning is not None
    assert "delta 0.009 is more than 1/5000" in warning
    assert "5,000 patients" in warning


@pytest.mark.parametrize("training", [{}, {"training": {"local_steps": 7}}, {"training": {"validate_local": 0}}])
def test_a_private_federation_does_not_score_the_models_that_sites_train(training: dict[str, object]) -> None:
    config = tiny.federation(privacy={"epsilon": 3}, **training)
    assert config.training.validate_local == 0
    assert not any(config.training.scores_own_model(number) for number in range(1, 30))
    with pytest.raises(ValidationError, match=r"training\.validate_local must be 0 with privacy"):
        tiny.federation(privacy={"epsilon": 3}, training={"validate_local": 5})


@pytest.mark.parametrize(("every", "rounds"), [(5, [5, 10]), (1, list(range(1, 12))), (0, []), (7, [7])])
def test_others_do_so_in_every_nth_round(every: int, rounds: list[int]) -> None:
    training = tiny.federation(training={"validate_local": every}).training
    assert [number for number in range(1, 12) if training.scores_own_model(number)] == rounds
    assert tiny.federation().training.validate_local == 5
