"""The differential privacy of a hospital's patients in a federation, in plain words: what it covers and what not."""

from __future__ import annotations

import math
from typing import Any

from common.config.federation import FederationConfig
from common.config.privacy import PrivacyConfig
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.privacy.calibration import gradient_noise

NO_PRIVACY = (
    "NONE: this federation does not use differential privacy. The model update is computed from your patients' "
    "scans, and it may be possible to learn something about individual patients from it. The operator of the server "
    "can see your hospital's own update."
)
USUAL_DELTA = 1e-3
NOT_CALLED_BACK = (
    "What has been sent cannot be recalled. A pause or a withdrawal takes effect with the next task; what is already "
    "part of the model stays in it, and the coordinator may pass the model on."
)
_ROUNDED = "rounded up to 1, 2, 5, 10, 20, ... seconds"
NOT_COVERED = (
    "Not covered: that your hospital takes part, when it is connected, and whether a task failed and with which code.",
    "Not covered: how many patients you train on and score models on. These numbers are sent unchanged, as your "
    "hospital's public declaration.",
    "Not covered: how long the work takes, which depends a little on how many patients a step happens to draw. The "
    f"durations that are sent are {_ROUNDED}; when a reply arrives can be seen.",
    "Not covered: what the model learns about patients in general, which is its purpose.",
)
SEVERAL_SCANS = (
    "One case in the dataset folder counts as one patient, unless patients.csv there names its patient. A patient "
    "with several cases that are not joined there is protected less: with two, epsilon is about twice as large."
)
ON_A_GRID = (
    "Contributions and noise are whole multiples of a public step, and the noise comes from a cryptographic generator, "
    "so that the last digits of what is sent tell nothing more."
)
PAID = (
    "Your site records the cost of a round in your hospital's privacy ledger before the round begins (fedvox-client "
    "ledger). privacy.max_epsilon in your site file limits what any patient spends over all federations; the site "
    "stops when it is reached. A crash does not make a round cost again; a round whose work failed, or whose record "
    "was lost, does cost again."
)

PRIVATE_MEANINGS = {
    "train_examples": "how many patients are trained on; sent unchanged, as your public declaration",
    "validation_examples": "how many patients models are scored on; sent unchanged, as your public declaration",
    "examples": "how many patients were trained on; sent unchanged, as your public declaration",
    "train_loss": "always empty: no loss is sent under differential privacy",
    "validation_loss": "always empty: no loss is sent under differential privacy",
    "dice": "for each label, the mean Dice over all validation patients, with noise added",
    "local_dice": "always empty: models trained at your site are not scored under differential privacy",
    "seconds": f"how long the task took, {_ROUNDED}",
    "seconds_data": f"how much of that was spent waiting for data, {_ROUNDED}",
    "seconds_compute": f"how much of that was spent training, {_ROUNDED}",
    "seconds_evaluate": f"how much of that was spent scoring, {_ROUNDED}",
    "epsilon": "what this federation has cost any one patient so far, at its delta; other federations are not included",
    "personal_dice": "always empty: no score of your site's personal model is sent under differential privacy",
}
"""Meanings by field, where they differ from those without differential privacy."""
NO_SCORES = {"dice": "always empty: this federation sends no scores"}


def private_meanings(privacy: PrivacyConfig | None) -> dict[str, str]:
    """Return the meanings of fields that differ under ``privacy``."""
    if privacy is None:
        return {}
    return PRIVATE_MEANINGS | (NO_SCORES if privacy.validation == "off" else {})


def privacy_terms(federation: FederationConfig, plan: Plan) -> dict[str, Any]:
    """Describe a federation's privacy protection.

    Parameters
    ----------
    federation
        The federation, with or without ``privacy``.
    plan
        The plan made for it.

    Returns
    -------
    dict[str, Any]
        ``method``, ``meaning``, ``details``, ``not_covered``, ``lasting``, and, under differential privacy,
        ``epsilon``, ``delta`` and the noise.
    """
    privacy = federation.privacy
    if privacy is None or plan.privacy is None:
        nothing: list[str] = []
        meaning = {"method": "none", "meaning": NO_PRIVACY, "details": nothing, "not_covered": nothing}
        return meaning | {"lasting": NOT_CALLED_BACK}
    return {
        "method": "differential privacy, patient by patient",
        "meaning": _promise(privacy),
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "max_grad_norm": privacy.max_grad_norm,
        "sample_rate": privacy.sample_rate,
        "training_noise": plan.privacy.training.noise_multiplier,
        "validation_noise": plan.privacy.validation.noise_multiplier if plan.privacy.validation else None,
        "details": _details(federation, privacy, plan.privacy, len(plan.labels)),
        "not_covered": list(NOT_COVERED),
        "lasting": NOT_CALLED_BACK,
    }


def _promise(privacy: PrivacyConfig) -> str:
    factor = math.exp(privacy.epsilon)
    times = f"{factor:,.0f}" if 100 <= factor < 1e6 else f"{factor:.3g}"
    return (
        f"DIFFERENTIAL PRIVACY for every patient: epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, over "
        "the whole federation. What anyone, including the server, can learn about one patient from everything your "
        f"site sends is bounded: no outcome becomes more than {times} times as likely because this "
        f"patient is among yours (exp(epsilon)), except with probability {privacy.delta:g} (delta). "
        "A smaller epsilon means stronger protection." + _delta_text(privacy.delta)
    )


def _delta_text(delta: float) -> str:
    if delta <= USUAL_DELTA:
        return ""
    return (
        f" WARNING: delta {delta:g} is large. To a hospital with more than {math.floor(1 / delta):,} patients here it "
        "promises little: publishing one of them whole would keep the promise. Ask for a smaller privacy.delta."
    )


def _details(federation: FederationConfig, privacy: PrivacyConfig, plan: PrivacyPlan, labels: int) -> list[str]:
    steps = federation.rounds * federation.training.local_steps
    each = "the only step" if steps == 1 else f"each of {steps:,} steps"
    adapts = ", which adapts to a noised count of how many patients it clips" if privacy.adaptive_clipping else ""
    noise = gradient_noise(plan.training.noise_multiplier, privacy.adaptive_clipping)
    update = (
        f"Noised at your site before it leaves: the model update. In {each}, every patient takes part "
        f"with probability {privacy.sample_rate:g}; each patient's contribution is clipped to the length "
        f"{privacy.max_grad_norm:g}{adapts}, and Gaussian noise of {noise:.3g} times that length is added "
        f"to the sum. {ON_A_GRID}"
    )
    if plan.validation is None:
        scores = "No scores of your validation patients are sent, and no losses."
    else:
        deviation = plan.validation.noise_multiplier * math.sqrt(labels) / 2
        scores = (
            "Noised at your site before they leave: the mean Dice scores of your validation patients, with a standard "
            f"deviation of {deviation:.3g} divided by the number of patients. No losses are sent."
        )
    return [update, scores, SEVERAL_SCANS, PAID]
