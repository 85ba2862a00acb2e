from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from common.losses import DeepSupervision, DiceCrossEntropy, FocalLoss, LossName, TverskyLoss, build_loss

NAMES: tuple[LossName, ...] = ("dice_ce", "focal", "tversky")
WEIGHTS = (0.5, 2.0, 3.0)


def random_case(batch: int = 3, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 4, 5, 6, generator=generator, dtype=torch.float64)
    label = torch.randint(0, classes, (batch, 4, 5, 6), generator=generator).to(torch.uint8)
    return logits, label


def certain_logits(label: Tensor, classes: int) -> Tensor:
    return 60.0 * F.one_hot(label.long(), classes).movedim(-1, 1).float()


def slow_loss(name: LossName, logits: Tensor, label: Tensor, weights: tuple[float, ...]) -> float:
    """The definitions, sample by sample, class by class, voxel by voxel."""
    samples = []
    for scores, truth in zip(logits.softmax(1), label, strict=True):
        voxels = list(zip(scores.flatten(1).T.tolist(), truth.flatten().tolist(), strict=True))
        total = sum(weights[true] for _, true in voxels)
        cross_entropy = sum(-weights[true] * math.log(p[true]) for p, true in voxels) / total
        focal = sum(-weights[true] * (1 - p[true]) ** 2 * math.log(p[true]) for p, true in voxels) / total
        dice = tversky = 0.0
        for k in range(1, len(weights)):
            hit = sum(p[k] for p, true in voxels if true == k)
            false_alarm = sum(p[k] for p, true in voxels if true != k)
            miss = sum(1 - p[k] for p, true in voxels if true == k)
            dice += weights[k] / sum(weights[1:]) * (2 * hit + 1) / (2 * hit + false_alarm + miss + 1)
            tversky += weights[k] / sum(weights[1:]) * (hit + 1) / (hit + 0.3 * false_alarm + 0.7 * miss + 1)
        samples.append({"dice_ce": cross_entropy + 1 - dice, "focal": focal, "tversky": 1 - tversky}[name])
    return sum(samples) / len(samples)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_the_definition(name: LossName, weights: tuple[float, ...] | None) -> None:
    logits, label = random_case()
    loss = build_loss(name, weights, deep_supervision=False)
    expected = slow_loss(name, logits, label, weights or (1.0, 1.0, 1.0))
    assert loss(logits, label).item() == pytest.approx(expected, rel=1e-9)


def test_parts_equal_torch_cross_entropy_and_monai_dice() -> None:
    logits, label = random_case()
    monai = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=1.0, smooth_dr=1.0)
    expected = F.cross_entropy(logits, label.long()) + monai(logits, label.unsqueeze(1))
    assert DiceCrossEntropy()(logits, label).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gradient_is_right(name: LossName, weights: tuple[float, ...] | None) -> None:
    logits, label = random_case(batch=2)
    loss = build_loss(name, weights, deep_supervision=False)
    small, small_label = logits[:, :, :2, :2, :2].clone().requires_grad_(), label[:, :2, :2, :2]
    assert torch.autograd.gradcheck(lambda x: loss(x, small_label), (small,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_samples_are_not_coupled(name: LossName, weights: tuple[float, ...] | None) -> None:
    logits, label = random_case()
    label[0] = 0  # samples that differ much in what they hold would show a shared denominator
    loss = build_loss(name, weights, deep_supervision=False)
    alone = [loss(logits[i : i + 1], label[i : i + 1]).item() for i in range(3)]
    assert loss(logits, label).item() == pytest.approx(sum(alone) / 3, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_without_foreground_is_well_behaved(name: LossName) -> None:
    loss = build_loss(name, None, deep_supervision=False)
    label = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    assert loss(certain_logits(label, 3), label).item() == pytest.approx(0, abs=1e-6)
    values = []
    for confidence in (-30.0, 0.0, 30.0):  # from certainly wrong to certainly right
        logits = torch.zeros(1, 3, 8, 8, 8)
        logits[:, 0] = confidence
        logits.requires_grad_()
        value = loss(logits, label)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()
        assert logits.grad.flatten(2).sum(2).abs().max() < 3
        values.append(value.item())
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("name", NAMES)
def test_zero_for_a_certain_and_right_prediction(name: LossName) -> None:
    _, label = random_case()
    loss = build_loss(name, WEIGHTS, deep_supervision=False)
    assert loss(certain_logits(label, 3), label).item() == pytest.approx(0, abs=1e-5)


def test_special_cases_of_focal_and_tversky() -> None:
    logits, label = random_case()
    cross_entropy = F.cross_entropy(logits, label.long())
    dice = DiceCrossEntropy(smooth=2.0)(logits, label) - cross_entropy
    torch.testing.assert_close(FocalLoss(gamma=0.0)(logits, label), cross_entropy)
    torch.testing.assert_close(TverskyLoss(false_positives=0.5, false_negatives=0.5)(logits, label), dice)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computed_in_float32_whatever_the_network_gives(name: LossName, dtype: torch.dtype) -> None:
    logits, label = random_case()
    low = logits.to(dtype)
    loss = build_loss(name, WEIGHTS, deep_supervision=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(low.double(), label).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_type_of_the_label_does_not_matter(dtype: torch.dtype) -> None:
    logits, label = random_case()
    assert DiceCrossEntropy()(logits, label.to(dtype)) == DiceCrossEntropy()(logits, label)


def test_deep_supervision_halves_the_weights_of_coarser_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 6), (2, 4, 6), (1, 2, 3)]
    outputs = tuple(torch.randn(2, 3, *shape, generator=generator) for shape in shapes)
    label = torch.randint(0, 3, (2, 4, 8, 6), generator=generator)
    plain = DiceCrossEntropy()
    thinned = [label, label[:, ::2, ::2], label[:, ::4, ::4, ::2]]
    expected = sum(w * plain(o, t) for w, o, t in zip((4 / 7, 2 / 7, 1 / 7), outputs, thinned, strict=True))
    loss = build_loss("dice_ce", None, deep_supervision=True)
    torch.testing.assert_close(loss(outputs, label), expected)
    torch.testing.assert_close(loss(outputs[0], label), plain(outputs[0], label))


def test_class_weights_move_with_the_module_and_stay_out_of_its_state() -> None:
    loss: nn.Module = DeepSupervision(DiceCrossEntropy(WEIGHTS))
    assert [tuple(buffer.tolist()) for buffer in loss.buffers()] == [WEIGHTS]
    assert not loss.state_dict()


@pytest.mark.parametrize("weights", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0)])
def test_weights_that_are_not_positive_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        build_loss("focal", weights, deep_supervision=False)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of dice_ce, focal, tversky"):
        build_loss("dice", None, deep_supervision=False)  # type: ignore[arg-type]
