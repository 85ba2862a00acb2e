"""What differential privacy costs in each round of a federation, calibrated once and the same at every site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from common.plan.base import Frozen, Real, Whole

Purpose = Literal["training", "validation"]


@dataclass(frozen=True)
class Spend:
    """One use of patients' data: ``steps`` times a Gaussian mechanism on a Poisson sample.

    Attributes
    ----------
    purpose
        Patients whose data is used: training or validation.
    noise_multiplier
        Standard deviation of the noise in units of one patient's largest contribution.
    sample_rate
        Probability that a patient takes part; 1 means all patients.
    steps
        Number of uses of the mechanism.
    """

    purpose: Purpose
    noise_multiplier: Annotated[Real, Field(gt=0, le=1e12)]
    sample_rate: Annotated[Real, Field(gt=0, le=1)]
    steps: Annotated[Whole, Field(ge=1, le=10**12)]


class PrivacyPlan(Frozen):
    """The noise of a whole federation, as a part of its plan.

    Attributes
    ----------
    training
        Spend of one round on the training patients.
    validation
        Spend of scoring a model once on the validation patients; None if no score leaves a site.
    """

    training: Spend
    validation: Spend | None = None

    def costs(self, trained: int, scored: int) -> list[Spend]:
        """Return the spends of ``trained`` training rounds and ``scored`` scored models."""
        costs = [self._times(self.training, trained)]
        if self.validation is not None:
            costs.append(self._times(self.validation, scored))
        return [spend for spend in costs if spend.steps]

    def score_deviation(self, patients: Sequence[int]) -> float:
        """Return the standard deviation of the noise in the sites' mean Dice, averaged over sites.

        On every label, the noise of a site's sum over its patients is ``noise_multiplier`` times half the root of the
        number of labels (``client.training.dp_trainer``). The mean over labels removes that root again.

        Parameters
        ----------
        patients
            Number of validation patients of each site that sent a score.

        Returns
        -------
        float
            0 if no score leaves a site.
        """
        if self.validation is None or not patients:
            return 0.0
        squares = sum((self.validation.noise_multiplier / (2 * count)) ** 2 for count in patients)
        return math.sqrt(squares) / len(patients)

    @staticmethod
    def _times(spend: Spend, times: int) -> Spend:
        return replace(spend, steps=times * spend.steps)
