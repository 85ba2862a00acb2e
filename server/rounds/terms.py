"""The terms that server and sites agreed on, as far as a round needs them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from common.config.federation import FederationConfig
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.protocol.codec import WeightLayout


@dataclass(frozen=True)
class Terms:
    """A federation's terms.

    Attributes
    ----------
    config
        The federation's configuration.
    layout
        Layout of the model's weights.
    labels
        Foreground label values that every site reports a Dice for.
    privacy
        Noise that every site adds; None without differential privacy.
    """

    config: FederationConfig
    layout: WeightLayout
    labels: Set[int]
    privacy: PrivacyPlan | None = None

    @classmethod
    def of(cls, config: FederationConfig, plan: Plan, layout: WeightLayout) -> Terms:
        """Return the terms of a federation with this plan, whose model has this layout."""
        return cls(config, layout, frozenset(plan.labels), plan.privacy)
