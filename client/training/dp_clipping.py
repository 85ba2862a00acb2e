"""Per-patient gradient clipping and summation in whole steps of a grid, with a fixed or adaptive clipping norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.dp_noise import DiscreteGaussian, steps_of
from common.config.privacy import AdaptiveClipping

# Values that are converted at a time, so that no second copy of the gradient is made in double precision or integers.
_PART = 2**20

LARGEST_FACTOR = 1e4
"""An adaptive norm changes at most by this factor, up or down, from its start."""


class ClippedSum:
    """Sum of the patients' clipped gradients as integers; holds one patient's gradient at a time.

    A patient's vector of integers is no longer than ``DEVIATION / multiplier`` steps, so that noise with a standard
    deviation of ``DEVIATION`` steps is ``multiplier`` times the largest contribution of a patient. Integers add up
    exactly, in whatever order: what one patient adds does not depend on the others.

    Every parameter's ``grad`` is a view of one flat buffer, into which backward passes accumulate.

    Parameters
    ----------
    parameters
        The trained parameters, at least one.
    multiplier
        Standard deviation of the noise in units of the clipping norm.

    Raises
    ------
    ValueError
        The noise is too weak (``steps_of``).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], multiplier: float) -> None:
        self.size = sum(parameter.numel() for parameter in parameters)
        self.gradient = torch.zeros(self.size, device=parameters[0].device)
        self.sum = torch.zeros_like(self.gradient, dtype=torch.int64)
        self._parts = list(zip(torch.split(self.gradient, _PART), torch.split(self.sum, _PART), strict=True))
        self._reach = steps_of(multiplier)
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
        """Clip the patient's gradient, cut it down to whole steps and add it; a non-finite gradient counts as zero.

        Cutting towards zero never makes a vector longer. Nothing here synchronises with a GPU, and the work is the same
        for every patient.

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
        # In double precision: the norm of many float32 squares would not be known well enough to promise a length.
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part, _ in self._parts]
        norm = torch.linalg.vector_norm(torch.stack(norms)) / loss_scale
        factor = torch.where(norm.isfinite(), self._reach / torch.maximum(norm, max_norm) / loss_scale, 0)
        for part, total in self._parts:
            total += part.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).mul_(factor).to(torch.int64)
        within: Tensor = norm <= max_norm
        return within

    def finish(self, noise: Tensor, max_norm: Tensor, expected: float) -> None:
        """Write (sum + noise) / ``expected`` number of patients to the parameters' ``grad``.

        Parameters
        ----------
        noise
            One integer per trained parameter, with a standard deviation of ``DEVIATION``.
        max_norm
            The norm that ``add_patient`` was called with.
        expected
            Number of patients that a step draws on average.
        """
        self.sum += noise
        # Only what is noised is scaled: from here on everything is post-processing.
        self.gradient.copy_(self.sum)
        self.gradient.mul_(max_norm / (self._reach * expected))


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
        self.value = torch.tensor(start, dtype=torch.float64, device=device)
        # Steps that one patient adds or subtracts: half a patient, where ``count_noise`` patients are ``DEVIATION``.
        self._half = int(steps_of(2 * adaptive.count_noise)) if adaptive else 0
        self._steps = torch.zeros((), dtype=torch.int64, device=device)

    def count(self, within: Tensor) -> None:
        """Count a patient; ``within`` is the result of ``ClippedSum.add_patient``."""
        self._steps += torch.where(within, self._half, -self._half)

    def follow(self, noise: DiscreteGaussian, expected: float) -> None:
        """Set the norm of the next step, from the ``expected`` number of patients."""
        adaptive = self._adaptive
        if adaptive is not None:
            noised = self._steps + int(noise.draw(1)[0])
            share = (0.5 + noised / (2 * self._half * expected)).clamp(0, 1)
            self.value = (self.value * torch.exp(-adaptive.learning_rate * (share - adaptive.target_quantile))).clamp(
                self._start / LARGEST_FACTOR, self._start * LARGEST_FACTOR
            )
        self._steps.zero_()
