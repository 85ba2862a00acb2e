"""What an algorithm adds to a site's gradients, besides those of its loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ProximalTerm:
    """The gradient of mu / 2 * |w - w_global|^2 + <constant, w>.

    Its first part is FedProx's (Li et al. 2020, arXiv 1812.06127): local training stays near the global model. It does
    not depend on the data: after the noise of differential privacy it costs no privacy. SCAFFOLD and FedDyn have the
    constant (``client.runner.gradient_memory``); with both parts the term is Ditto's (``client.training.personal``).

    Parameters
    ----------
    parameters
        The trained parameters, which hold the global model now.
    mu
        Strength of the first part; 0 adds nothing and holds no copy of the model.
    constant
        One tensor for each of ``parameters``; empty for none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], mu: float, constant: Sequence[Tensor] = ()) -> None:
        self._mu = mu
        kept = parameters if mu > 0 else ()
        self._pairs: list[tuple[nn.Parameter, Tensor]] = [(weights, weights.detach().clone()) for weights in kept]
        self._constant = list(zip(parameters, constant, strict=True)) if constant else []

    def add_gradient(self) -> None:
        """Add the term's gradient to the gradients of the parameters."""
        with torch.no_grad():
            for weights, start in self._pairs:
                if weights.grad is not None:
                    weights.grad.add_(weights - start, alpha=self._mu)
            for weights, constant in self._constant:
                if weights.grad is not None:
                    weights.grad.add_(constant)
