"""A site's own model: own norm layers, and Ditto between the global model and training alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.training.dp_trainer import make_trainer
from client.training.personal import Ditto, LocalRound, OwnNorms, make_personal_method
from client.training.proximal import ProximalTerm
from client.training.trainer import Trainer
from common.protocol.codec import Vector
from common.weights.part import norm_part
from tests import tiny
from tests.client.training.one_step import trainer as private_trainer

CASES = [tiny.ball(f"case-{index}", index) for index in range(3)]
RATE = 0.05
SGD: dict[str, Any] = {
    "optimizer": "sgd", "momentum": 0, "weight_decay": 0, "learning_rate": RATE, "poly_power": 0, "gradient_clip": 0,
    "local_steps": 1, "precision": "float32", "augmentation": None,
}  # fmt: skip


def weights_of(trainer: Trainer, shift: float = 0.0) -> Vector:
    return trainer.layout.flatten(trainer.model.state_dict()) + np.float32(shift)


def ditto_of(strength: float, **training: Any) -> tuple[Trainer, Ditto, Trainer]:
    config = tiny.federation(training=SGD | training, personal={"method": "ditto", "ditto_lambda": strength})
    torch.manual_seed(0)
    trainer = make_trainer(config, tiny.plan(), torch.device("cpu"))
    method = make_personal_method(config, trainer)
    assert isinstance(method, Ditto)
    return trainer, method, method._own


@pytest.mark.parametrize("strength", [0.0, 0.3, 5.0, 1e4])
def test_dittos_optimum_on_a_quadratic(strength: float) -> None:
    """(c * goal + lambda * w) / (c + lambda) from any start: the site's own optimum at 0, the global model far on."""
    goal, centre, curvature = np.array([4.0, -1.0]), np.array([1.0, 2.0]), 0.5
    for start in (np.zeros(2), np.array([10.0, -7.0])):
        weights = nn.Parameter(torch.tensor(start))
        term = ProximalTerm([weights], strength, [strength * torch.tensor(start - centre)])
        optimizer = torch.optim.SGD([weights], 0.9 / (curvature + strength))
        for _ in range(30):
            optimizer.zero_grad()
            (curvature / 2 * ((weights - torch.tensor(goal)) ** 2).sum()).backward()
            term.add_gradient()
            optimizer.step()
        found = weights.detach().numpy()
        np.testing.assert_allclose(found, (curvature * goal + strength * centre) / (curvature + strength), atol=1e-6)
        if strength in (0.0, 1e4):
            np.testing.assert_allclose(found, centre if strength else goal, atol=1e-3)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1 / RATE])
def test_a_step_of_ditto_is_a_step_alone_and_a_pull_towards_the_global_model(strength: float) -> None:
    """With lambda = 1 / rate the pull goes all the way, whatever the site kept."""
    trainer, ditto, _ = ditto_of(strength)
    centre, kept = weights_of(trainer), weights_of(trainer, 0.1)
    alone = trainer.train(kept, CASES, 1, 3).update
    training, own = ditto.train(centre, kept, LocalRound(CASES, 1, 3))
    np.testing.assert_allclose(own, kept + alone - RATE * strength * (kept - centre), atol=1e-6)
    np.testing.assert_array_equal(training.update, trainer.train(centre, CASES, 1, 3).update)
    assert np.abs(alone).max() > 1e-4


def test_ditto_begins_with_the_global_model_and_trains_as_many_steps_as_asked() -> None:
    config = tiny.federation(training=SGD, personal={"method": "ditto", "ditto_lambda": 0.0, "steps": 3})
    trainer = make_trainer(config, tiny.plan(), torch.device("cpu"))
    method = make_personal_method(config, trainer)
    assert isinstance(method, Ditto)
    start, steps = weights_of(trainer), []
    training, own = method.train(start, None, LocalRound(CASES, 1, 3, lambda step, loss: steps.append(step)))
    assert steps == [1, 2, 3, 4] and training.steps == 1
    longer = make_trainer(tiny.federation(training=SGD | {"local_steps": 3}), tiny.plan(), torch.device("cpu"))
    np.testing.assert_allclose(own, start + longer.train(start, CASES, 1, 3).update, atol=1e-6)


def test_an_own_model_that_diverges_stays_as_it_was_and_the_update_still_counts() -> None:
    trainer, ditto, own_trainer = ditto_of(0.0)
    own_trainer.proximal_mu = 1e30
    centre, kept = weights_of(trainer), weights_of(trainer, 1e9)
    training, own = ditto.train(centre, kept, LocalRound(CASES, 1, 3))
    assert own is kept and np.isfinite(training.update).all()


def test_own_norms_are_kept_and_the_update_has_nothing_of_them() -> None:
    config = tiny.federation(training=SGD | {"local_steps": 3}, personal={"method": "norms"})
    trainer = make_trainer(config, tiny.plan(), torch.device("cpu"))
    method = make_personal_method(config, trainer)
    assert isinstance(method, OwnNorms)
    part, weights = norm_part(trainer.layout), weights_of(trainer)
    kept: Vector | None = None
    for round_number in (1, 2):
        start = weights if kept is None else method.model(weights, kept)
        plain = trainer.train(start, CASES, round_number, 3).update
        training, kept = method.train(weights, kept, LocalRound(CASES, round_number, 3))
        np.testing.assert_array_equal(kept, part.take(start) + part.take(plain))
        assert part.take(plain).any() and not part.take(training.update).any()
        part.clear(plain)
        np.testing.assert_array_equal(training.update, plain)
    own = method.model(weights, kept)
    np.testing.assert_array_equal(part.take(own), kept)
    part.put(own, part.take(weights))
    np.testing.assert_array_equal(own, weights)


def test_a_private_site_keeps_noised_norms_and_sends_no_noise_in_their_places() -> None:
    trainer = private_trainer(noise=1.0)
    part, start = norm_part(trainer.layout), weights_of(trainer)
    plain = trainer.train(start, CASES, 1, 3).update
    training, kept = OwnNorms(trainer).train(start, None, LocalRound(CASES, 1, 3))
    np.testing.assert_array_equal(kept, part.take(start) + part.take(plain))
    assert part.take(plain).any() and training.update.any() and not part.take(training.update).any()


def test_nothing_is_made_for_a_federation_without_it() -> None:
    config = tiny.federation()
    assert make_personal_method(config, make_trainer(config, tiny.plan(), torch.device("cpu"))) is None
