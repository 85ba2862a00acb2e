"""The private step against the obviously right slow one; what a patient can change; noise, draws and noised scores."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

from client.training.dp_clipping import ClippingNorm
from client.training.dp_noise import DiscreteGaussian
from client.training.dp_sampling import PatientSampler, draw_patients, fresh_key, repeatable_key
from client.training.dp_trainer import PrivateTrainer, make_trainer
from client.training.trainer import Trainer
from common.config.federation import FederationConfig
from common.config.privacy import AdaptiveClipping, PrivacyConfig
from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import PatchCutter
from common.losses import build_loss
from common.models.unet3d import build_model
from common.plan.augmentation import AugmentationPlan
from common.protocol.codec import Vector
from tests import tiny
from tests.client.training.one_step import RATE, trainer

CASES = [tiny.ball(f"case-{index}", index) for index in range(6)]
ALARM = 1e-6
"""Probability with which a statistical test here fails although the code is right."""


def start(private: Trainer) -> Vector:
    torch.manual_seed(7)
    return private.layout.flatten(build_model(private.plan.model).state_dict())


def noised_sum(private: PrivateTrainer, cases: Sequence[CachedCase], seed: int = 0) -> Vector:
    """Sum plus noise of one step, read from the update in double precision."""
    update = private.train(start(private), cases, 1, seed).update.astype(np.float64)
    return -update * private._privacy.sample_rate * len(cases) / RATE


def slow_sum(private: PrivateTrainer, cases: Sequence[CachedCase], seed: int = 0) -> tuple[Vector, list[float]]:
    """Every patient's gradient kept whole, patch by patch, in float64; clipped, then added. Also their norms."""
    privacy, config = private._privacy, private.config
    model = build_model(private.plan.model).double()
    private.layout.load(model, start(private).astype(np.float64))
    loss = build_loss(config.loss, config.class_weights, private.plan.model.deep_supervision)
    key = repeatable_key(seed, 1, "training")
    members = draw_patients(key, [case.name for case in cases], privacy.sample_rate, 0)
    cutter = PatchCutter(private.plan.patch_size, config.augmentation, private.plan.mirror_axes)
    draws = [(0, position) for position in members]
    count = privacy.patches_per_patient
    sampler = PatientSampler(cases, draws, cutter, count, config.foreground_fraction, key)
    gradients = []
    for position in range(len(draws)):
        batch = sampler.batch(position)
        patches = []
        for image, label in zip(batch.image, batch.label, strict=True):
            value = loss(model(image[None].double()), label[None])
            parts = torch.autograd.grad(value, list(model.parameters()))
            patches.append(torch.cat([part.reshape(-1) for part in parts]))
        gradients.append(torch.stack(patches).mean(0))
    norms = [float(gradient.norm()) for gradient in gradients]
    total = sum(
        gradient * min(1.0, privacy.max_grad_norm / norm) for gradient, norm in zip(gradients, norms, strict=True)
    )
    return total.numpy(), norms


@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_streamed_sum_equals_the_slow_one(patches: int, max_norm: float) -> None:
    private = trainer(
        patches_per_patient=patches, max_grad_norm=max_norm, training={"augmentation": AugmentationPlan()}
    )
    expected, norms = slow_sum(private, CASES)
    assert len(norms) >= 2
    assert all(norm > 0.5 for norm in norms), "clipping must matter"
    found = noised_sum(private, CASES)
    assert np.linalg.norm(found - expected) < 2e-4 * np.linalg.norm(expected)


def test_streamed_sum_with_deep_supervision_and_class_weights() -> None:
    plan = tiny.plan()
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"deep_supervision": True})})
    private = trainer(plan=plan, training={"class_weights": (1.0, 3.0)}, max_grad_norm=0.3)
    expected, _ = slow_sum(private, CASES)
    assert np.linalg.norm(noised_sum(private, CASES) - expected) < 2e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("sample_rate", [0.7, 1.0])
def test_one_patient_more_changes_the_sum_by_the_clipping_norm_at_most(sample_rate: float) -> None:
    changes = []
    for left_out in range(len(CASES)):
        private = trainer(sample_rate=sample_rate, max_grad_norm=0.25, patches_per_patient=2)
        fewer = CASES[:left_out] + CASES[left_out + 1 :]
        changes.append(np.linalg.norm(noised_sum(private, CASES) - noised_sum(private, fewer)))
    # What is read from a float32 update is rounded.
    assert max(changes) == pytest.approx(0.25, rel=1e-3)
    taking_part = draw_patients(repeatable_key(0, 1, "training"), [case.name for case in CASES], sample_rate, 0)
    assert [change > 0.2 for change in changes] == [index in taking_part for index in range(len(CASES))]
    assert all(change < 1e-3 for index, change in enumerate(changes) if index not in taking_part)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_patient_without_a_finite_gradient_counts_as_zero(value: float) -> None:
    poisoned = replace(CASES[0], image=np.full_like(CASES[0].image, value))
    private = trainer(sample_rate=1.0, max_grad_norm=0.25)
    with_it, without = noised_sum(private, [poisoned, *CASES[1:]]), noised_sum(private, CASES[1:])
    assert np.isfinite(with_it).all()
    np.testing.assert_allclose(with_it, without, atol=1e-4)


def test_only_trained_parameters_count_and_change() -> None:
    private = trainer(noise=1.0, trainable="head", sample_rate=1.0)
    named = private.layout.split(private.train(start(private), CASES, 1, 0).update)
    moved = {name for name, values in named.items() if np.any(values)}
    assert moved == {name for name in named if name.startswith("heads.")}
    # The clipping norm is that of the trained part alone.
    weak = trainer(trainable="head", sample_rate=1.0, max_grad_norm=1e-3)
    assert np.linalg.norm(noised_sum(weak, CASES)) > 0.5e-3 * len(CASES)


def test_the_divisor_is_the_expected_number_of_patients_and_not_rounded() -> None:
    """Six patients at 0.57 are 3.42 in expectation."""
    private = trainer(sample_rate=0.57)
    expected, norms = slow_sum(private, CASES)
    assert norms
    update = private.train(start(private), CASES, 1, 0).update
    np.testing.assert_allclose(update, -RATE * expected / 3.42, atol=3e-6)


def test_an_empty_draw_leaves_noise_of_the_stated_deviation() -> None:
    noise, norm = 3.0, 2.0
    private = trainer(noise=noise, max_grad_norm=norm, sample_rate=1e-9)
    key = repeatable_key(0, 1, "training")
    assert draw_patients(key, [case.name for case in CASES], 1e-9, 0) == []
    values = noised_sum(private, CASES) / (noise * norm)
    low, high = chi2.ppf([ALARM / 2, 1 - ALARM / 2], values.size)
    assert low < float((values**2).sum()) < high
    assert kstest(values, "norm").pvalue > ALARM


def test_noise_does_not_grow_with_the_patients() -> None:
    noise, norm = 20.0, 1.0
    private = trainer(noise=noise, max_grad_norm=norm, sample_rate=1.0)
    values = (noised_sum(private, CASES) - noised_sum(trainer(sample_rate=1.0), CASES)) / (noise * norm)
    low, high = chi2.ppf([ALARM / 2, 1 - ALARM / 2], values.size)
    assert low < float((values**2).sum()) < high


def test_simulations_repeat_and_hospitals_do_not() -> None:
    config = FederationConfig.model_validate(
        {"name": "x", "rounds": 2, "training": {"local_steps": 2, "precision": "float32"}, "privacy": {"epsilon": 5}}
    )
    device = torch.device("cpu")
    simulated = make_trainer(config, tiny.plan_for(config), device, repeatable=True)
    hospital = make_trainer(config, tiny.plan_for(config), device)
    weights = start(simulated)
    first, again = (simulated.train(weights, CASES, 1, 3).update for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for other in (simulated.train(weights, CASES, 2, 3).update, simulated.train(weights, CASES, 1, 4).update):
        assert np.abs(other - first).max() > 0
    first, again = (hospital.train(weights, CASES, 1, 3).update for _ in range(2))
    assert np.abs(first - again).max() > 0
    # A noised score outside of 0 to 1 is cut off: any two may be equal by chance, twenty are not.
    assert len({hospital.validate(weights, CASES[:1], 1, 3).dice[1] for _ in range(20)}) > 1
    assert fresh_key(0, 1, "training") != fresh_key(0, 1, "training")


def test_a_file_with_privacy_gets_the_private_trainer_and_nothing_else_does() -> None:
    plain = FederationConfig.model_validate({"name": "x", "rounds": 2})
    private = plain.model_copy(update={"privacy": PrivacyConfig(epsilon=3)})
    device = torch.device("cpu")
    assert isinstance(made := make_trainer(private, tiny.plan_for(private), device), PrivateTrainer)
    assert made.privacy.training.steps == private.training.local_steps
    assert type(make_trainer(plain, tiny.plan(), device)) is Trainer


def test_losses_are_private() -> None:
    seen: list[object] = []
    private = trainer(noise=1.0)
    training = private.train(start(private), CASES, 1, 0, lambda step, loss: seen.append((step, loss)))
    assert seen == [(1, None)]
    assert math.isnan(training.loss)
    assert math.isnan(private.validate(start(private), CASES).loss)


def test_scores_are_the_mean_dice_without_noise() -> None:
    private = trainer()
    expected = tiny.trainer().validate(start(private), CASES).dice
    assert private.validate(start(private), CASES).dice[1] == pytest.approx(expected[1], abs=1e-6)


def test_a_label_that_nobody_has_and_nothing_predicts_counts_as_one() -> None:
    private = trainer()
    empty = replace(CASES[0], label=np.zeros_like(CASES[0].label))
    weights = np.zeros(private.layout.size, np.float32)
    assert private.validate(weights, [empty]).dice[1] == pytest.approx(1, abs=1e-6)
    assert private.validate(weights, [empty, CASES[1]]).dice[1] == pytest.approx(0.5, abs=1e-6)


def test_score_noise_has_the_stated_deviation() -> None:
    """One patient's Dice less 1/2 is at most 1/2 for one label; two of each kind keep the mean far from 0 and 1."""
    noise = 0.2
    private = trainer(noise=noise)
    weights = np.zeros(private.layout.size, np.float32)
    nothing = replace(CASES[0], label=np.zeros((16, 16, 16), np.uint8), image=CASES[0].image[:, :16, :16, :16])
    missed = replace(nothing, label=np.ones((16, 16, 16), np.uint8))
    cases = [replace(case, name=f"{index}") for index, case in enumerate([nothing, missed] * 2)]
    values = [private.validate(weights, cases, number).dice[1] for number in range(1, 151)]
    scaled = (np.array(values) - 0.5) * len(cases) / (noise / 2)
    low, high = chi2.ppf([ALARM / 2, 1 - ALARM / 2], scaled.size)
    assert low < float((scaled**2).sum()) < high


def one_patient(cases: Sequence[CachedCase], *positions: int) -> list[CachedCase]:
    """The cases, of which some are scans of one patient."""
    return [replace(case, patient="same" if index in positions else case.name) for index, case in enumerate(cases)]


@pytest.mark.parametrize("sample_rate", [0.7, 1.0])
def test_a_patient_with_many_scans_changes_the_sum_by_the_clipping_norm_at_most(sample_rate: float) -> None:
    cases = one_patient(CASES, 1, 2, 4)
    private = trainer(sample_rate=sample_rate, max_grad_norm=0.05, patches_per_patient=4)

    def total(some: Sequence[CachedCase]) -> Vector:
        update = private.train(start(private), some, 1, 0).update.astype(np.float64)
        return -update * sample_rate * len({case.owner for case in some}) / RATE

    change = np.linalg.norm(total(cases) - total([case for case in cases if case.owner != "same"]))
    assert change <= 0.05 * 1.001
    if sample_rate == 1.0:
        assert change > 0.05 * 0.9, "clipped, so he counts as much as anybody, and once"


def test_a_patient_with_many_scans_has_one_score() -> None:
    """The mean over patients of the mean over their scans."""
    private = trainer()
    single = [private.validate(start(private), [case]).dice[1] for case in CASES[:4]]
    found = private.validate(start(private), one_patient(CASES[:4], 0, 1, 2)).dice[1]
    assert found == pytest.approx((np.mean(single[:3]) + single[3]) / 2, abs=1e-6)


def test_scores_stay_between_zero_and_one_whatever_the_noise() -> None:
    private = trainer(noise=100.0)
    found = [private.validate(start(private), CASES[:1], number).dice[1] for number in range(1, 9)]
    assert set(found) == {0.0, 1.0}


def test_without_scores_none_leaves() -> None:
    private = trainer(validation="off")
    validation = private.validate(start(private), CASES)
    assert math.isnan(validation.dice[1])
    assert validation.seconds == 0


def test_bfloat16_keeps_sums_and_noise_in_float32() -> None:
    reduced = trainer(sample_rate=1.0, max_grad_norm=0.25, training={"precision": "bfloat16"})
    exact = trainer(sample_rate=1.0, max_grad_norm=0.25)
    difference = noised_sum(reduced, CASES) - noised_sum(exact, CASES)
    assert 0 < np.linalg.norm(difference) < 0.1 * 0.25 * len(CASES)


def test_gradient_clip_acts_on_the_noised_gradient() -> None:
    private = trainer(noise=50.0, training={"gradient_clip": 0.5})
    assert np.linalg.norm(private.train(start(private), CASES, 1, 0).update) == pytest.approx(0.5 * RATE, rel=1e-3)


def test_it_learns_where_patients_are_many_enough_for_the_noise() -> None:
    cases = [tiny.ball(f"case-{index}", index) for index in range(40)]
    config = FederationConfig.model_validate(
        {
            "name": "x",
            "rounds": 1,
            "training": {"local_steps": 30, "precision": "float32", "augmentation": None, "learning_rate": 5e-3},
            "privacy": {"epsilon": 50, "sample_rate": 0.3},
        }
    )
    private = make_trainer(config, tiny.plan_for(config), torch.device("cpu"), repeatable=True)
    weights = start(private)
    judge = tiny.trainer()
    after = judge.validate(weights + private.train(weights, cases, 1, 0).update, CASES).dice[1]
    assert after > 0.8 > judge.validate(weights, CASES).dice[1]


class TestAdaptiveClipping:
    def test_the_norm_goes_to_the_wanted_quantile(self) -> None:
        """Norms that are uniform between 0 and 10: a quarter lies within 2.5."""
        adaptive = AdaptiveClipping(target_quantile=0.25, learning_rate=0.2, count_noise=5.0)
        norm = ClippingNorm(1.0, adaptive, torch.device("cpu"))
        noise = DiscreteGaussian(bytes(32))
        random = np.random.default_rng(0)
        found = []
        for _ in range(300):
            for length in random.uniform(0, 10, random.binomial(1000, 0.2)):
                norm.count(torch.tensor(bool(length <= norm.value)))
            norm.follow(noise, 200)
            found.append(float(norm.value))
        assert np.mean(found[100:]) == pytest.approx(2.5, rel=0.05)

    def test_one_patient_changes_the_count_by_one_half(self) -> None:
        adaptive = AdaptiveClipping(count_noise=1e-8, learning_rate=1.0)
        values = []
        for within in ([True, False, True], [True, False], [True, False, True, False]):
            norm = ClippingNorm(1.0, adaptive, torch.device("cpu"))
            for one in within:
                norm.count(torch.tensor(one))
            norm.follow(DiscreteGaussian(bytes(32)), 10.0)
            values.append(-math.log(float(norm.value)) * 10)
        np.testing.assert_allclose(values, [0.5, 0.0, 0.0], atol=1e-5)

    def test_gradients_get_the_noise_that_is_left(self) -> None:
        noise = 3.0
        adaptive = {"count_noise": 2.0}
        values = noised_sum(trainer(noise=noise, sample_rate=1e-9, adaptive_clipping=adaptive), CASES)
        expected = (noise**-2 - 4.0**-2) ** -0.5
        low, high = chi2.ppf([ALARM / 2, 1 - ALARM / 2], values.size)
        assert low < float((values**2).sum()) / expected**2 < high

    def test_training_follows_the_norm_and_starts_anew_every_round(self) -> None:
        adaptive = {"count_noise": 0.1, "learning_rate": 1.0, "target_quantile": 0.01}
        values = {"noise": 1e-8, "sample_rate": 1.0, "max_grad_norm": 50.0}
        many = {"local_steps": 6}
        moving, fixed = trainer(**values, training=many, adaptive_clipping=adaptive), trainer(**values, training=many)
        weights = start(moving)
        first = moving.train(weights, CASES, 1, 0).update
        assert np.linalg.norm(first) < np.linalg.norm(fixed.train(weights, CASES, 1, 0).update)
        np.testing.assert_array_equal(moving.train(weights, CASES, 1, 0).update, first)


def test_works_for_every_layer_of_the_network() -> None:
    """Residual blocks, anisotropic kernels and strides, several channels counts: the slow sum again."""
    plan = tiny.plan()
    model = plan.model.model_copy(
        update={
            "residual": True,
            "channels": (8, 8, 16),
            "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
            "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
            "blocks": (1, 2, 1),
        }
    )
    private = trainer(plan=plan.model_copy(update={"model": model}), max_grad_norm=0.5)
    expected, _ = slow_sum(private, CASES)
    assert np.linalg.norm(noised_sum(private, CASES) - expected) < 2e-4 * np.linalg.norm(expected)
