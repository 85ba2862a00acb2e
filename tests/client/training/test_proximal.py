"""FedProx on quadratics: sites with other optima and other curvatures, whose proximal optimum is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from client.training.dp_trainer import make_trainer
from client.training.proximal import ProximalTerm
from common.models.unet3d import build_model
from tests import tiny
from tests.client.training.one_step import RATE
from tests.client.training.one_step import trainer as private_trainer

GOALS = np.array([[1.0, -2.0], [4.0, 0.5], [-1.0, 3.0]])
CURVATURES = np.array([0.5, 1.0, 4.0])


def trained(start: np.ndarray, goal: np.ndarray, curvature: float, mu: float) -> np.ndarray:
    """Gradient descent on curvature / 2 * |w - goal|^2 with the term."""
    weights = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD([weights], 0.9 / (curvature + mu))
    term = ProximalTerm([weights], mu)
    for _ in range(15):
        optimizer.zero_grad()
        (curvature / 2 * ((weights - torch.tensor(goal)) ** 2).sum()).backward()
        term.add_gradient()
        optimizer.step()
    return weights.detach().numpy()


@pytest.mark.parametrize("mu", [0.0, 0.3, 5.0])
def test_a_site_ends_at_the_optimum_of_its_proximal_problem(mu: float) -> None:
    start = np.array([10.0, 10.0])
    for goal, curvature in zip(GOALS, CURVATURES, strict=True):
        expected = (curvature * goal + mu * start) / (curvature + mu)
        np.testing.assert_allclose(trained(start, goal, curvature, mu), expected, atol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 2.0])
def test_rounds_end_at_the_fixed_point_of_fedprox(mu: float) -> None:
    """Sites' optima weighted by curvature / (curvature + mu): the larger mu, the nearer to the common optimum."""
    weights = np.zeros(2)
    for _ in range(40):
        weights = np.mean([trained(weights, *site, mu) for site in zip(GOALS, CURVATURES, strict=True)], axis=0)
    shares = CURVATURES / (CURVATURES + mu)
    np.testing.assert_allclose(weights, shares @ GOALS / shares.sum(), atol=1e-4)
    common = CURVATURES @ GOALS / CURVATURES.sum()
    if mu:
        assert np.linalg.norm(weights - common) < np.linalg.norm(GOALS.mean(axis=0) - common)


def test_parameters_without_a_gradient_are_left_alone() -> None:
    weights = nn.Parameter(torch.ones(2))
    ProximalTerm([weights], 1.0).add_gradient()
    assert weights.grad is None


def test_a_federation_with_fedprox_gets_its_term_with_and_without_privacy() -> None:
    for privacy in (None, {"epsilon": 8}):
        config = tiny.federation(strategy={"name": "fedprox", "proximal_mu": 0.7}, privacy=privacy)
        assert make_trainer(config, tiny.plan_for(config), torch.device("cpu")).proximal_mu == 0.7
        plain = config.model_copy(update={"strategy": type(config.strategy)()})
        assert make_trainer(plain, tiny.plan_for(config), torch.device("cpu")).proximal_mu == 0


def test_the_term_holds_back_a_private_site() -> None:
    """By what one step of descent on the term alone takes back, as the noise and the draws are the same."""
    cases = [tiny.ball(f"case-{index}", index) for index in range(4)]
    updates = []
    for mu, steps in ((0.0, 1), (0.0, 2), (5.0, 2)):
        trainer = private_trainer(training={"local_steps": steps})
        trainer.proximal_mu = mu
        torch.manual_seed(7)
        weights = trainer.layout.flatten(build_model(tiny.plan().model).state_dict())
        updates.append(trainer.train(weights, cases, 1, 0).update)
    first, without, held = updates
    np.testing.assert_allclose(held, without - 5.0 * RATE * first, atol=1e-5)
    assert np.abs(held - without).max() > 1e-4
