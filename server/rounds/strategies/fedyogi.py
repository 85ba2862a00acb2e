"""FedYogi: Yogi at the server (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

from __future__ import annotations

import numpy as np

from common.protocol.codec import Vector
from server.rounds.strategies.fedadam import FedAdam


class FedYogi(FedAdam):
    """``FedAdam`` with a second moment that moves towards d squared by at most (1 - beta_2) * d squared a round."""

    def second_moment(self, before: Vector, squared: Vector) -> Vector:
        """Return the next second moment."""
        change: Vector = (1 - self.beta_2) * squared * np.sign(before - squared)
        return before - change
