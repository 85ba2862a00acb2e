"""What one patient can change: gradients clipped to a norm and summed, and a norm that follows them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.dp_noise import Noise
from common.config.privacy import AdaptiveClipping

LARGEST_FACTOR = 1e4
"""An adaptive norm stays within so many times, and one part in so many, of where it began."""


class ClippedSum:
    """The sum over patients of their clipped gradients, in float32; one patient's gradient in memory at a time.

    All gradients lie in one flat buffer, of which every parameter's ``grad`` is a view: backward passes add into it.

    Parameters
    ----------
    parameters
        those that are trained, at least one.
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
        """Before the first patient of a step."""
        self.sum.zero_()

    def begin_patient(self) -> None:
        """Before a patient's backward passes."""
        self.gradient.zero_()

    def add_patient(self, max_norm: Tensor, loss_scale: float = 1.0) -> Tensor:
        """Clips what the backward passes left, and adds it; a gradient that is not finite counts as zero.

        Nothing here waits for a GPU, or does other work for one patient than for another.

        Parameters
        ----------
        max_norm
            largest L2 norm of a patient's gradient, a scalar.
        loss_scale
            what the loss was multiplied by.

        Returns
        -------
        Tensor
            Whether the patient's gradient was within ``max_norm``, a scalar of bool.
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
        """Leaves (sum + noise) / expected in the parameters' ``grad``; expected: number of patients."""
        torch.add(self.sum, noise, out=self.gradient)
        self.gradient.mul_(1 / expected)


class ClippingNorm:
    """The norm that patients' gradients are clipped to: fixed, or led by a noised quantile of their norms.

    After every step, norm <- norm exp(-learning_rate (b - target_quantile)), b being the noised share of patients
    whose gradients were within it (Andrew et al. 2021). The share is 1/2 plus a noised sum of +1/2 or -1/2 for each
    patient over the expected number of patients, so that how many took part does not show; it is held between 0 and 1,
    for with few patients the noise would otherwise throw the norm about.

    Parameters
    ----------
    start
        the first norm.
    adaptive
        None keeps it.
    device
        where ``value`` lies.
    """

    def __init__(self, start: float, adaptive: AdaptiveClipping | None, device: torch.device) -> None:
        self._start = start
        self._adaptive = adaptive
        self.value = torch.tensor(start, device=device)
        self._halves = torch.zeros_like(self.value)

    def count(self, within: Tensor) -> None:
        """Counts a patient; within: as ``ClippedSum.add_patient`` returns it."""
        self._halves += within.float() - 0.5

    def follow(self, noise: Noise, expected: float) -> None:
        """Sets the norm for the next step; expected: number of patients."""
        adaptive = self._adaptive
        if adaptive is not None:
            noised = self._halves + adaptive.count_noise * noise.normal(1)[0]
            share = (0.5 + noised / expected).clamp(0, 1)
            self.value = (self.value * torch.exp(-adaptive.learning_rate * (share - adaptive.target_quantile))).clamp(
                self._start / LARGEST_FACTOR, self._start * LARGEST_FACTOR
            )
        self._halves = torch.zeros_like(self.value)
