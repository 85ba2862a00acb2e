"""Opacus confirms what our accountants calibrated, and refuses noise that is too small."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import ConfigError
from common.plan.privacy import Spend
from common.privacy.calibration import noise_for
from common.privacy.second_opinion import confirm


@pytest.mark.parametrize("sample_rate", [0.05, 0.9, 1.0])
@pytest.mark.parametrize(("epsilon", "delta", "steps"), [(0.05, 1e-6, 2000), (8, 1e-5, 60), (100, 1e-3, 1)])
def test_calibrated_noise_is_confirmed_and_a_fifth_less_is_refused(
    epsilon: float, delta: float, steps: int, sample_rate: float
) -> None:
    spend = Spend("training", noise_for(epsilon, delta, sample_rate, steps), sample_rate, steps)
    confirm([spend], epsilon, delta)
    less = replace(spend, noise_multiplier=spend.noise_multiplier * 0.8)
    with pytest.raises(ConfigError, match=r"training noise .* Opacus"):
        confirm([less], epsilon, delta)


def test_each_group_of_patients_is_looked_at() -> None:
    training = Spend("training", noise_for(2, 1e-5, 0.3, 20), 0.3, 20)
    validation = Spend("validation", noise_for(2, 1e-5, 1, 5), 1, 5)
    confirm([training, validation], 2, 1e-5)
    with pytest.raises(ConfigError, match="validation noise"):
        confirm([training, replace(validation, steps=6)], 2, 1e-5)
