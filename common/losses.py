"""Segmentation losses, computed for each sample separately and averaged over the batch.

No loss couples the samples of a batch, so the gradient of a batch is the mean of the gradients of its samples;
differentially private training relies on this. All arithmetic is in float32, even under autocast (float64 for float64
logits).

A class that is absent from a sample is well behaved: its Dice or Tversky index is at most
``smooth / (smooth + part of what is predicted)``, which tends to 1 as the prediction of that class vanishes. Nothing
divides by zero, and the gradient with respect to the logits stays bounded.

Shapes: logits are (batch, classes, x, y, z) of any floating type; label is (batch, x, y, z) of any integer type with
values from 0 (background) to classes - 1. Label values are not checked here, because that would synchronise the GPU;
label maps are checked when they are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

LossName = Literal["dice_ce", "focal", "tversky"]


class _WeightedLoss(nn.Module, ABC):
    """A loss with one positive weight per class, background included, or None for equal weights."""

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _as_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss as a scalar."""
        return self._of(_terms(logits, label))

    @abstractmethod
    def _of(self, terms: _Terms) -> Tensor:
        """Return the loss of some terms as a scalar."""


class DiceCrossEntropy(_WeightedLoss):
    """Mean cross-entropy plus one minus the soft Dice of the foreground classes (Milletari et al., 2016).

    Both terms have weight one (Isensee et al., 2021). Class weights multiply the voxels of a class in the
    cross-entropy and the classes in the mean Dice.

    Parameters
    ----------
    class_weights
        One positive number per class, background included, or None for equal weights.
    smooth
        Voxels added to the numerator and denominator of the Dice.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, smooth: float = 1.0) -> None:
        super().__init__(class_weights)
        self.smooth = smooth

    def _of(self, terms: _Terms) -> Tensor:
        """Return the loss: between 0 and about 1 + log(classes) for an untrained network."""
        cross_entropy = _voxel_mean(-(terms.log_probability * terms.truth).sum(2), terms, self.class_weights)
        dice = _tversky_index(terms, 0.5, 0.5, self.smooth / 2)
        return cross_entropy + 1 - _foreground_mean(dice, self.class_weights)


class FocalLoss(_WeightedLoss):
    """Cross-entropy that down-weights easy voxels (Lin et al., 2017): mean of ``-(1 - p)^gamma * log(p)``.

    Parameters
    ----------
    class_weights
        As in DiceCrossEntropy.
    gamma
        0 is plain cross-entropy; larger values focus on the voxels that are still wrong.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, gamma: float = 2.0) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def _of(self, terms: _Terms) -> Tensor:
        """Return the loss: 0 for a certain and correct prediction."""
        # For p near 1, 1 - p may round to a small negative number, whose power is NaN.
        doubt = (1 - terms.probability).clamp(min=0) ** self.gamma
        sums = -(doubt * terms.log_probability * terms.truth).sum(2)
        return _voxel_mean(sums, terms, self.class_weights)


class TverskyLoss(_WeightedLoss):
    """One minus the mean Tversky index of the foreground classes (Salehi et al., 2017).

    Parameters
    ----------
    class_weights
        As in DiceCrossEntropy; the background weight is not used.
    false_positives
        Weight of false positive voxels.
    false_negatives
        Weight of false negative voxels; a weight above ``false_positives`` favours sensitivity. With both at 0.5 this
        is the Dice loss.
    smooth
        Voxels added to the numerator and denominator.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        false_positives: float = 0.3,
        false_negatives: float = 0.7,
        smooth: float = 1.0,
    ) -> None:
        super().__init__(class_weights)
        self.false_positives = false_positives
        self.false_negatives = false_negatives
        self.smooth = smooth

    def _of(self, terms: _Terms) -> Tensor:
        """Return the loss: between 0 and 1."""
        index = _tversky_index(terms, self.false_positives, self.false_negatives, self.smooth)
        return 1 - _foreground_mean(index, self.class_weights)


class DeepSupervision(nn.Module):
    """Deep supervision: a loss over the outputs of all decoder stages, with weights 1, 1/2, 1/4, ... over their sum.

    A coarse output is compared with every n-th voxel of the label map: the voxels on which the encoder's strided
    convolutions are centred.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | tuple[Tensor, ...], label: Tensor) -> Tensor:
        """Return the weighted mean loss.

        Parameters
        ----------
        logits
            Outputs, finest first, each size a divisor of the label's; or the finest output alone, as the network
            returns it outside training.
        label
            (batch, x, y, z) at the finest size.
        """
        outputs = (logits,) if isinstance(logits, Tensor) else logits
        weights = [0.5**index for index in range(len(outputs))]
        losses = [
            weight * self.loss(output, _thinned(label, output)) for weight, output in zip(weights, outputs, strict=True)
        ]
        return torch.stack(losses).sum() / sum(weights)


def build_loss(name: LossName, class_weights: Sequence[float] | None, deep_supervision: bool) -> nn.Module:
    """Return the loss with the given name, called as ``loss(logits, label)``.

    Parameters
    ----------
    name
        "dice_ce", "focal" or "tversky".
    class_weights
        One positive number per class, background included, or None for equal weights.
    deep_supervision
        Whether the network returns one output per decoder stage in training.

    Raises
    ------
    ValueError
        If the name is unknown or a weight is not positive.
    """
    losses: dict[str, type[_WeightedLoss]] = {
        "dice_ce": DiceCrossEntropy,
        "focal": FocalLoss,
        "tversky": TverskyLoss,
    }
    if name not in losses:
        raise ValueError(f"unknown loss {name!r}: choose one of {', '.join(losses)}")
    loss = losses[name](class_weights)
    return DeepSupervision(loss) if deep_supervision else loss


class _Terms(NamedTuple):
    """Inputs of all losses, each (batch, classes, voxels), float32 or float64."""

    log_probability: Tensor
    probability: Tensor
    truth: Tensor


def _terms(logits: Tensor, label: Tensor) -> _Terms:
    at_least_float32 = torch.promote_types(logits.dtype, torch.float32)
    log_probability = logits.flatten(2).to(at_least_float32).log_softmax(dim=1)
    classes = torch.arange(logits.shape[1], device=label.device, dtype=label.dtype)
    # Measured on CPUs: multiplying by a float mask takes half the time of one_hot or torch.where. It is as fast as
    # gather and scatter_add and, unlike scatter_add, deterministic on GPUs.
    truth = (label.flatten(1).unsqueeze(1) == classes.unsqueeze(1)).to(at_least_float32)
    return _Terms(log_probability, log_probability.exp(), truth)


def _voxel_mean(class_sums: Tensor, terms: _Terms, weights: Tensor | None) -> Tensor:
    """Average each sample's (weighted) mean over voxels, from its sums per class (batch, classes)."""
    if weights is None:
        return class_sums.sum(1).mean() / terms.truth.shape[2]
    return ((class_sums * weights).sum(1) / (terms.truth.sum(2) * weights).sum(1)).mean()


def _tversky_index(terms: _Terms, false_positives: float, false_negatives: float, smooth: float) -> Tensor:
    """Return the soft Tversky index of each sample and class, (batch, classes)."""
    hits = (terms.probability * terms.truth).sum(2)
    false_alarms = terms.probability.sum(2) - hits
    misses = terms.truth.sum(2) - hits
    return (hits + smooth) / (hits + false_positives * false_alarms + false_negatives * misses + smooth)


def _foreground_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Average the (weighted) mean over all foreground classes over the samples; values (batch, classes)."""
    if weights is None:
        return values[:, 1:].mean()
    return ((values * weights)[:, 1:].sum(1) / weights[1:].sum()).mean()


def _thinned(label: Tensor, output: Tensor) -> Tensor:
    steps = [fine // coarse for fine, coarse in zip(label.shape[1:], output.shape[2:], strict=True)]
    return label[:, :: steps[0], :: steps[1], :: steps[2]]


def _as_weights(class_weights: Sequence[float] | None) -> Tensor | None:
    if class_weights is None:
        return None
    if any(weight <= 0 for weight in class_weights):
        raise ValueError(f"class weights must be positive, not {list(class_weights)}")
    return torch.tensor(class_weights, dtype=torch.float32)
