"""The proximal term of FedProx (Li et al. 2020, arXiv 1812.06127): local training stays near the global model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ProximalTerm:
    """The gradient of mu / 2 * |w - w_global|^2, which sites add to that of their loss.

    It does not depend on the data: after the noise of differential privacy it costs no privacy.

    Parameters
    ----------
    parameters
        The trained parameters, which hold the global model now.
    mu
        Strength of the term; 0 adds nothing and holds no copy of the model.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], mu: float) -> None:
        self._mu = mu
        kept = parameters if mu > 0 else ()
        self._pairs: list[tuple[nn.Parameter, Tensor]] = [(weights, weights.detach().clone()) for weights in kept]

    def add_gradient(self) -> None:
        """Add the term's gradient to the gradients of the parameters."""
        with torch.no_grad():
            for weights, start in self._pairs:
                if weights.grad is not None:
                    weights.grad.add_(weights - start, alpha=self._mu)
