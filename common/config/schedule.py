"""Learning rates over a federation, and how far a round's steps carry a model."""

from __future__ import annotations

from common.config.federation import FederationConfig


def poly_learning_rate(base: float, step: int, total: int, power: float) -> float:
    """Return ``base * (1 - step / total) ** power``: ``base`` at step 0, and 0 after the last step."""
    return base * float((1 - step / total) ** power)


def round_length(config: FederationConfig, round_number: int, steps: int) -> float:
    """Return how far a round of SGD moves a weight whose gradient is always -1.

    An update is that many times a weighted mean of its steps' negative gradients. For plain SGD it is the sum of the
    learning rates; with momentum, it is the sum of FedNova's vector a (Wang et al. 2020, arXiv 2007.07481), each entry
    with its learning rate.

    Parameters
    ----------
    config
        The federation; its ``training.optimizer`` must be ``sgd``.
    round_number
        1 for the first.
    steps
        Steps that the site makes in every round.
    """
    training = config.training
    total = config.rounds * steps
    length = velocity = 0.0
    for step in range((round_number - 1) * steps, round_number * steps):
        velocity = training.momentum * velocity + 1
        rate = poly_learning_rate(training.learning_rate, step, total, training.poly_power)
        # As in Nesterov's momentum, and in plain SGD where momentum is 0.
        length += rate * (1 + training.momentum * velocity)
    return length
