"""What differential privacy a federation gives a hospital's patients, in plain words: what it covers and what not."""

from __future__ import annotations

import math
from typing import Any

from common.config.federation import FederationConfig
from common.config.privacy import PrivacyConfig
from common.privacy.calibration import PrivacyPlan, gradient_noise, plan_privacy

NO_PRIVACY = (
    "NONE: this federation does not use differential privacy. The model update is computed from your patients' "
    "scans, and it may be possible to learn something about single patients from it. Whoever operates the server can "
    "see your hospital's own update."
)
NOT_CALLED_BACK = (
    "What was sent cannot be called back. A pause or a withdrawal holds from the next task on; what is already part of "
    "the model stays in it, and the coordinator may pass the model on."
)
NOT_COVERED = (
    "Not covered: that your hospital takes part, when it is connected, and that a task failed and with which code.",
    "Not covered: how many patients you train on and score models on. These numbers are sent as they are, as your "
    "hospital's public declaration.",
    "Not covered: how long the work takes, which depends a little on how many patients a step happens to draw.",
    "Not covered: what the model learns about patients in general, which is its purpose.",
)
PLAIN_RANDOM = (
    "Not covered: attacks on the last bits of the noise, which is made by an ordinary generator from a secret of your "
    "site (privacy.secure_random is off)."
)
SEVERAL_SCANS = (
    "One case in the dataset folder counts as one patient, unless patients.csv there says whose it is. A patient with "
    "several cases that it does not join is protected less: with two, epsilon is about twice as large."
)
PAID = (
    "Your site writes what a round costs into your hospital's privacy ledger before the round begins (fedvox-client "
    "ledger). privacy.max_epsilon in your site file limits what any patient spends over all federations, and stops the "
    "site when it is reached. A round that is repeated, after a crash for example, costs again."
)

PRIVATE_MEANINGS = {
    "train_examples": "how many patients are trained on; sent as it is, as your public declaration",
    "validation_examples": "how many patients models are scored on; sent as it is, as your public declaration",
    "examples": "how many patients were trained on; sent as it is, as your public declaration",
    "train_loss": "always empty: under differential privacy no loss leaves",
    "validation_loss": "always empty: under differential privacy no loss leaves",
    "dice": "for each label, the mean Dice over all validation patients, with noise added",
    "seconds": "how long the task took; not protected",
    "seconds_data": "how much of that was waiting for data; not protected",
    "seconds_compute": "how much of that was training; not protected",
    "seconds_evaluate": "how much of that was scoring; not protected",
    "epsilon": "what this federation has cost any one patient so far, at its delta; other federations do not show",
}
"""By field, where they differ from those without differential privacy."""
NO_SCORES = {"dice": "always empty: this federation lets no score leave"}


def private_meanings(privacy: PrivacyConfig | None) -> dict[str, str]:
    """What fields of messages mean under ``privacy``, where that is not their ordinary meaning."""
    if privacy is None:
        return {}
    return PRIVATE_MEANINGS | (NO_SCORES if privacy.validation == "off" else {})


def privacy_terms(federation: FederationConfig, labels: int) -> dict[str, Any]:
    """What a federation does for its patients' privacy.

    Parameters
    ----------
    federation
        with or without ``privacy``.
    labels
        how many there are.

    Returns
    -------
    dict[str, Any]
        ``method``, ``meaning``, ``details``, ``not_covered``, ``lasting``, and, under differential privacy,
        ``epsilon``, ``delta`` and the noise.
    """
    privacy = federation.privacy
    if privacy is None:
        nothing: list[str] = []
        meaning = {"method": "none", "meaning": NO_PRIVACY, "details": nothing, "not_covered": nothing}
        return meaning | {"lasting": NOT_CALLED_BACK}
    plan = plan_privacy(privacy, federation.rounds, federation.training.local_steps)
    return {
        "method": "differential privacy, patient by patient",
        "meaning": _promise(privacy),
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "max_grad_norm": privacy.max_grad_norm,
        "sample_rate": privacy.sample_rate,
        "training_noise": plan.training.noise_multiplier,
        "validation_noise": plan.validation.noise_multiplier if plan.validation else None,
        "details": _details(federation, privacy, plan, labels),
        "not_covered": [*NOT_COVERED, *([] if privacy.secure_random else [PLAIN_RANDOM])],
        "lasting": NOT_CALLED_BACK,
    }


def _promise(privacy: PrivacyConfig) -> str:
    factor = math.exp(privacy.epsilon)
    times = f"{factor:,.0f}" if 100 <= factor < 1e6 else f"{factor:.3g}"
    return (
        f"DIFFERENTIAL PRIVACY for every single patient: epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, over "
        "the whole federation. What anybody, the server included, can learn about one patient from all that your site "
        f"sends is bounded: nothing becomes more than {times} times as likely because this "
        f"patient is among yours (exp(epsilon)), but for an exception of probability {privacy.delta:g} (delta). "
        "A smaller epsilon protects more."
    )


def _details(federation: FederationConfig, privacy: PrivacyConfig, plan: PrivacyPlan, labels: int) -> list[str]:
    steps = federation.rounds * federation.training.local_steps
    adapts = ", which follows a noised count of how many patients it cuts" if privacy.adaptive_clipping else ""
    noise = gradient_noise(plan.training.noise_multiplier, privacy.adaptive_clipping)
    update = (
        f"Noised at your site, before it leaves: the model update. In each of {steps} steps every patient takes part "
        f"with probability {privacy.sample_rate:g}; one patient's contribution is cut to the length "
        f"{privacy.max_grad_norm:g}{adapts}, and Gaussian noise of {noise:.3g} times that length is added "
        "to the sum."
    )
    if plan.validation is None:
        scores = "No score of your validation patients leaves, and no loss."
    else:
        deviation = plan.validation.noise_multiplier * math.sqrt(labels) / 2
        scores = (
            "Noised at your site, before they leave: the mean Dice scores of your validation patients, by a standard "
            f"deviation of {deviation:.3g} divided by their number. Losses do not leave."
        )
    return [update, scores, SEVERAL_SCANS, PAID]
