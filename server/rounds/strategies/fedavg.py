"""How accepted updates become the next global model."""

from __future__ import annotations

import numpy as np

from common.protocol.codec import Result, Vector


class FedAvg:
    """Federated averaging, weighted by training patients (McMahan et al. 2017, arXiv 1602.05629)."""

    def weight(self, result: Result) -> float:
        """How much a site's update counts."""
        return float(result.examples)

    def next_weights(self, weights: Vector, mean_update: Vector) -> Vector:
        """The same part of the next global model from a part of this one and of the weighted mean of updates.

        In the memory of ``mean_update``.
        """
        return np.add(weights, mean_update, out=mean_update)
