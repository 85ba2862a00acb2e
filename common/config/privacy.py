"""The ``privacy`` section of a federation file: differential privacy whose unit is the patient."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from common.plan.base import Frozen, PositiveInt


def _off_is_a_word(value: object) -> object:
    """In YAML 1.1 a bare ``off`` means false."""
    return "off" if value is False else value


class AdaptiveClipping(Frozen):
    """The clipping norm follows a noised quantile of the patients' gradient norms (Andrew et al. 2021).

    Attributes
    ----------
    target_quantile
        share of patients whose gradients are to stay unclipped.
    learning_rate
        of the geometric update of the norm at each step.
    count_noise
        standard deviation of the noise on the number of unclipped patients, in patients; its cost is taken out of the
        same budget.
    """

    target_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    count_noise: Annotated[float, Field(gt=0)] = 10.0


class PrivacyConfig(Frozen):
    """Patient-level differential privacy: neighbouring datasets differ by one patient, added or removed.

    Attributes
    ----------
    epsilon, delta
        of the whole federation, for every patient of a site; the noise is calibrated to them once.
    max_grad_norm
        L2 norm to which one patient's gradient is clipped.
    sample_rate
        probability with which a patient takes part in a step, the same at every site.
    patches_per_patient
        augmented patches whose gradients are averaged before clipping; costs time, not privacy.
    adaptive_clipping
        let the norm follow the data, starting at ``max_grad_norm``.
    validation
        ``noised`` means of bounded scores leave a site, or ``off``: none do.
    secure_random
        noise from the operating system's cryptographic generator (slower).
    """

    mode: Literal["patient"] = "patient"
    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=0.01)] = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    patches_per_patient: PositiveInt = 1
    adaptive_clipping: AdaptiveClipping | None = None
    validation: Annotated[Literal["noised", "off"], BeforeValidator(_off_is_a_word)] = "noised"
    secure_random: bool = False
