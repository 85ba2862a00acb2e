"""A site's personal model in plain words: what the site does, what stays, and whether its score is sent."""

from __future__ import annotations

from common.config.federation import FederationConfig
from common.config.personal import own_steps
from common.formatting import counted

_WHERE = (
    "It is in personal-model in your site's state folder, for fedvox-client predict and evaluate, and never leaves."
)
_NORMS = (
    "Your site keeps a personal model: the global one with the scales and shifts of its norm layers as trained at your "
    f"site. They are not sent: the update has zeros in their places. {_WHERE}"
)
_SHARED = "The score of your personal model is sent only if privacy.share_personal_score is true in your site.yaml."
_NOT_SHARED = "The score of your personal model is not sent: no privacy budget pays for it."
_WITHOUT_NOISE = " It is trained without noise: keep the file as confidential as the scans."


def personal_terms(federation: FederationConfig) -> list[str]:
    """Return a federation's personal models in words, in sentences for a list; empty if it has none."""
    personal, private = federation.personal, federation.privacy is not None
    if personal is None:
        return []
    steps = counted(own_steps(personal, federation.training.local_steps), "step")
    ditto = (
        f"Your site also trains a personal model, {steps} a round, held near the global one (ditto, ditto_lambda "
        f"{personal.strength:g}). {_WHERE}{_WITHOUT_NOISE if private else ''}"
    )
    return [ditto if personal.method == "ditto" else _NORMS, _NOT_SHARED if private else _SHARED]
