"""The ``privacy`` section of a federation file: patient-level differential privacy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from common.formatting import counted
from common.plan.base import Frozen, OpenFraction, PositiveFloat, PositiveInt, Real


def _off_is_a_word(value: object) -> object:
    """Restore ``off``, which YAML 1.1 reads as false."""
    return "off" if value is False else value


class AdaptiveClipping(Frozen):
    """Adaptive clipping: the norm tracks a noised quantile of the patients' gradient norms (Andrew et al. 2021).

    Attributes
    ----------
    target_quantile
        Target share of patients whose gradients stay unclipped.
    learning_rate
        Step size of the geometric update of the norm.
    count_noise
        Standard deviation of the noise on the number of unclipped patients, in patients; it consumes part of the same
        budget.
    """

    target_quantile: OpenFraction = 0.5
    learning_rate: Annotated[Real, Field(gt=0, le=1)] = 0.2
    count_noise: PositiveFloat = 10.0


def delta_warning(delta: float, patients: int) -> str | None:
    """Return a warning if ``delta`` is so large that the promise means little for a site of ``patients``.

    A method that publishes one random patient's data whole keeps to any epsilon at a delta of 1 / ``patients``.
    """
    if patients < 1 or delta * patients <= 1:
        return None
    return (
        f"delta {delta:g} is more than 1/{patients}, for a site with {counted(patients, 'patient')}: publishing one of "
        f"them whole would keep this promise; write a privacy.delta well below {1 / patients:.1g}"
    )


class PrivacyConfig(Frozen):
    """Patient-level differential privacy: neighbouring datasets differ by one patient, added or removed.

    Attributes
    ----------
    epsilon, delta
        Budget of every patient over the whole federation; the noise is calibrated to it once.
    max_grad_norm
        L2 norm to which one patient's gradient is clipped.
    sample_rate
        Probability that a patient takes part in a step, the same at every site.
    patches_per_patient
        Augmented patches whose gradients are averaged before clipping; costs time, not privacy.
    adaptive_clipping
        Adapts the norm to the data, starting at ``max_grad_norm``.
    validation
        ``noised``: noised means of bounded scores leave a site; ``off``: no scores leave it.
    """

    mode: Literal["patient"] = "patient"
    epsilon: Annotated[Real, Field(gt=0, le=100)]
    delta: Annotated[Real, Field(gt=0, lt=0.01)] = 1e-5
    max_grad_norm: PositiveFloat = 1.0
    sample_rate: Annotated[Real, Field(gt=0, le=1)] = 0.1
    patches_per_patient: PositiveInt = 1
    adaptive_clipping: AdaptiveClipping | None = None
    validation: Annotated[Literal["noised", "off"], BeforeValidator(_off_is_a_word)] = "noised"


def with_unscored_training(content: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the default of ``training.validate_local`` for a private federation; leave what the file says."""
    training = content.get("training")
    if content.get("privacy") is None or not isinstance(training, dict | None) or "validate_local" in (training or {}):
        return dict(content)
    return {**content, "training": {**(training or {}), "validate_local": 0}}
