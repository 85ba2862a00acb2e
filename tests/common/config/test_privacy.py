"""A delta above 1/n is told."""

import pytest

from common.config.privacy import delta_warning


@pytest.mark.parametrize(("delta", "patients"), [(1e-5, 5000), (0.009, 111), (0.001, 1000), (0.009, 0)])
def test_a_small_delta_is_not_worth_a_word(delta: float, patients: int) -> None:
    assert delta_warning(delta, patients) is None


def test_a_delta_above_one_patient_is_warned_of() -> None:
    warning = delta_warning(0.009, 5000)
    assert warning is not None
    assert "delta 0.009 is more than 1/5000" in warning
    assert "5,000 patients" in warning
