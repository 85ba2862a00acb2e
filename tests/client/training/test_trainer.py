"""Local training: it learns, repeats exactly, and stops at numbers that would poison a model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.training.scaled_step import NonFiniteLossError
from client.training.trainer import Trainer
from common.config.federation import TrainingConfig
from common.config.schedule import poly_learning_rate
from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import PatchSampler
from common.losses import build_loss
from common.metrics import dice
from common.models.unet3d import build_model
from common.protocol.codec import Vector
from tests import tiny

CASES = [tiny.ball(f"case-{index}", index) for index in range(4)]


def initial(trainer: Trainer) -> Vector:
    torch.manual_seed(7)
    return trainer.layout.flatten(build_model(tiny.plan().model).state_dict())


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 2, 2), (0.1, 2, 1), (2, 1, 8), (50, 1, 9)])
def test_a_site_makes_as_many_steps_as_its_scans_and_epochs_say(epochs: float, batch: int, steps: int) -> None:
    """With the schedule of those steps; four scans, and at most nine steps."""
    by_epochs = tiny.trainer(local_steps=9, local_epochs=epochs, batch_size=batch)
    by_steps = tiny.trainer(local_steps=steps, batch_size=batch)
    weights = by_steps.layout.flatten(build_model(tiny.plan().model).state_dict())
    one, other = (trainer.train(weights, CASES, 2, 0) for trainer in (by_epochs, by_steps))
    assert one.steps == other.steps == steps
    np.testing.assert_array_equal(one.update, other.update)


def test_learning_raises_dice() -> None:
    trainer = tiny.trainer(local_steps=60)
    weights = initial(trainer)
    before = trainer.validate(weights, CASES[3:])
    training = trainer.train(weights, CASES[:3], 1, seed=0)
    after = trainer.validate(weights + training.update, CASES[3:])
    assert after.dice[1] > 0.9 > before.dice[1]
    assert after.loss < before.loss


def test_same_seed_same_update_and_other_seed_another() -> None:
    trainer = tiny.trainer()
    weights = initial(trainer)
    first, again, other = (trainer.train(weights, CASES, 1, seed).update for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_nothing_is_kept_between_rounds() -> None:
    """A site that trained before gives the same round 2 as one that comes in fresh."""
    veteran, fresh = tiny.trainer(), tiny.trainer()
    weights = initial(veteran)
    veteran.train(weights, CASES, 1, seed=5)
    expected = fresh.train(weights, CASES, 2, seed=5).update
    np.testing.assert_array_equal(veteran.train(weights, CASES, 2, seed=5).update, expected)


def test_workers_do_not_change_the_result() -> None:
    weights = initial(tiny.trainer())
    one, three = (tiny.trainer(workers=count).train(weights, CASES, 1, 5).update for count in (1, 3))
    np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(("optimizer", "mu"), [("adamw", 0.0), ("sgd", 0.0), ("sgd", 3.0)])
def test_update_equals_a_plain_loop(optimizer: str, mu: float) -> None:
    """Against the shortest correct program: sampler, forward, loss, backward, clip, step."""
    trainer = tiny.trainer(optimizer=optimizer, gradient_clip=0.5)
    trainer.proximal_mu = mu
    config = trainer.config
    weights = initial(trainer)
    model = build_model(tiny.plan().model)
    trainer.layout.load(model, weights)
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    plain: torch.optim.Optimizer
    if optimizer == "sgd":
        plain = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=config.weight_decay, nesterov=True)
    else:
        plain = torch.optim.AdamW(parameters, weight_decay=config.weight_decay)
    sampler = PatchSampler(CASES, (16, 16, 16), 2, config.foreground_fraction, None, (), 5)
    loss_function = build_loss("dice_ce", None, False)
    for step in range(4, 8):
        plain.param_groups[0]["lr"] = config.learning_rate * (1 - step / 12) ** 0.9
        batch = sampler.batch(step)
        plain.zero_grad()
        distance = sum(((now - then) ** 2).sum() for now, then in zip(parameters, start, strict=True))
        (loss_function(model(batch.image), batch.label) + mu / 2 * distance).backward()
        norm = math.sqrt(
            sum(float((parameter.grad**2).sum()) for parameter in parameters if parameter.grad is not None)
        )
        for parameter in parameters:
            if parameter.grad is not None and norm > 0.5:
                parameter.grad *= 0.5 / norm
        plain.step()
    expected = trainer.layout.flatten(model.state_dict()) - weights
    np.testing.assert_allclose(trainer.train(weights, CASES, 2, 5).update, expected, rtol=2e-2, atol=2e-5)


def test_learning_rate_decays_over_the_whole_federation() -> None:
    rates = [poly_learning_rate(0.1, step, 10, 0.9) for step in range(10)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[5] == pytest.approx(0.1 * 0.5**0.9)


def test_steps_are_reported_with_their_losses() -> None:
    seen: list[tuple[int, float]] = []
    training = (trainer := tiny.trainer()).train(
        initial(trainer), CASES, 1, 5, lambda step, loss: seen.append((step, loss))
    )
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert training.loss == pytest.approx(sum(loss for _, loss in seen) / 4)
    assert training.steps == 4


def test_validation_dice_is_the_mean_over_patients() -> None:
    trainer = tiny.trainer()
    weights = trainer.train(initial(trainer), CASES, 1, 5).update + initial(trainer)
    expected = [trainer.validate(weights, [case]).dice[1] for case in CASES]
    assert trainer.validate(weights, CASES).dice[1] == pytest.approx(np.mean(expected))


def test_a_label_that_nobody_has_and_nothing_predicts_has_no_dice() -> None:
    trainer = tiny.trainer()
    weights = np.zeros(trainer.layout.size, np.float32)
    empty = replace(CASES[0], label=np.zeros_like(CASES[0].label))
    assert math.isnan(trainer.validate(weights, [empty]).dice[1])
    assert dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)) != 0


def poisoned(value: float) -> CachedCase:
    return replace(CASES[0], image=np.full_like(CASES[0].image, value))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_round(value: float) -> None:
    trainer = tiny.trainer()
    with pytest.raises(NonFiniteLossError, match="not finite"):
        trainer.train(initial(trainer), [poisoned(value)], 1, 5)


def test_bfloat16_learns_too() -> None:
    trainer = tiny.trainer(local_steps=60, precision="bfloat16")
    assert trainer.precision == "bfloat16"
    weights = initial(trainer)
    assert trainer.validate(weights + trainer.train(weights, CASES[:3], 1, 0).update, CASES[3:]).dice[1] > 0.9


def test_deep_supervision_and_class_weights_train() -> None:
    plan = tiny.plan()
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"deep_supervision": True})})
    config = TrainingConfig(local_steps=3, class_weights=(1.0, 2.0), loss="focal", precision="float32")
    trainer = Trainer(build_model(plan.model), plan, config, 3, torch.device("cpu"))
    training = trainer.train(trainer.layout.flatten(build_model(plan.model).state_dict()), CASES, 1, 0)
    assert np.isfinite(training.update).all()
