"""The terms that server and sites agreed on, as far as a round needs them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from common.config.federation import FederationConfig
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.protocol.codec import WeightLayout
from common.weights.part import WeightPart, norm_part


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

    @property
    def kept(self) -> WeightPart | None:
        """Weights that sites keep to themselves; None if they share all."""
        personal = self.config.personal
        return norm_part(self.layout) if personal is not None and personal.method == "norms" else None

    @property
    def personal_labels(self) -> Set[int]:
        """Labels of the score of a personal model; none if sites have no such models, or with differential privacy."""
        is_scored = self.config.personal is not None and self.config.privacy is None
        return self.labels if is_scored else frozenset()

    @classmethod
    def of(cls, config: FederationConfig, plan: Plan, layout: WeightLayout) -> Terms:
        """Return the terms of a federation with this plan, whose model has this layout."""
        return cls(config, layout, frozenset(plan.labels), plan.privacy)
