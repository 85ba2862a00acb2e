"""Per-patient gradient clipping and summation, with a fixed or adaptive clipping norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.dp_noise import Noise
from common.config.privacy import AdaptiveClipping

LARGEST_FACTOR = 1e4
"""An adaptive norm changes at most by this factor, up or down, from its start."""


class ClippedSum:
    """Sum of the patients' clipped gradients, in float32; holds one patient's gradient at a time.

    Every parameter's ``grad`` is a view of one flat buffer, into which backward passes accumulate.

    Parameters
    ----------
    parameters
        The trained parameters, at least one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.size = sum(parameter.numel() for parameter in parameters)
        self.gradient = torch.zeros(self.size, device=parameters[0].device)
        self.sum = torch.zeros_like(self.gradient)
        start = 0
        for parameter in parameters:
            # In the parameter's own memory layout, as optimizers and autograd want it.
            parameter.grad = self.gradient.as_strided(parameter.shape, parameter.stride(), start)
            start += parameter.numel()

    def begin(self) -> None:
        """Reset the sum before a step's first patient."""
        self.sum.zero_()

    def begin_patient(self) -> None:
        """Reset the gradient before a patient's backward passes."""
        self.gradient.zero_()

    def add_patient(self, max_norm: Tensor, loss_scale: float = 1.0) -> Tensor:
        """Clip the patient's gradient and add it to the sum; a non-finite gradient counts as zero.

        Nothing here synchronises with a GPU, and the work is the same for every patient.

        Parameters
        ----------
        max_norm
            Largest L2 norm of a patient's gradient, a scalar.
        loss_scale
            Factor by which the loss was multiplied.

        Returns
        -------
        Tensor
            Whether the patient's gradient was within ``max_norm``, a boolean scalar.
        """
        if loss_scale != 1:
            self.gradient.mul_(1 / loss_scale)
        norm = torch.linalg.vector_norm(self.gradient)
        factor = torch.where(norm.isfinite(), (max_norm / norm).clamp(max=1), 0)
        self.gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.sum.addcmul_(self.gradient, factor)
        within: Tensor = norm <= max_norm
        return within

    def finish(self, noise: Tensor, expected: float) -> None:
        """Write (sum + noise) / ``expected`` number of patients to the parameters' ``grad``."""
        torch.add(self.sum, noise, out=self.gradient)
        self.gradient.mul_(1 / expected)


class ClippingNorm:
    """The clipping norm of the patients' gradients: fixed, or following a noised quantile of their norms.

    After every step, norm <- norm exp(-learning_rate (b - target_quantile)), where b is the noised share of patients
    whose gradients were within the norm (Andrew et al. 2021). The share is 1/2 plus the noised sum of +1/2 or -1/2 per
    patient, divided by the expected number of patients, so the number of participants is not revealed. It is clamped to
    [0, 1], because with few patients the noise would otherwise make the norm jump.

    Parameters
    ----------
    start
        The first norm.
    adaptive
        Settings of adaptive clipping; None keeps the norm fixed.
    device
        Device of ``value``.
    """

    def __init__(self, start: float, adaptive: AdaptiveClipping | None, device: torch.device) -> None:
        self._start = start
        self._adaptive = adaptive
        self.value = torch.tensor(start, device=device)
        self._halves = torch.zeros_like(self.value)

    def count(self, within: Tensor) -> None:
        """Count a patient; ``within`` is the result of ``ClippedSum.add_patient``."""
        self._halves += within.float() - 0.5

    def follow(self, noise: Noise, expected: float) -> None:
        """Set the norm of the next step, from the ``expected`` number of patients."""
        adaptive = self._adaptive
        if adaptive is not None:
            noised = self._halves + adaptive.count_noise * noise.normal(1)[0]
            share = (0.5 + noised / expected).clamp(0, 1)
            self.value = (self.value * torch.exp(-adaptive.learning_rate * (share - adaptive.target_quantile))).clamp(
                self._start / LARGEST_FACTOR, self._start * LARGEST_FACTOR
            )
        self._halves = torch.zeros_like(self.value)
