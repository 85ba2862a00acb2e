"""A federation whose answer is known: sites go several steps down quadratics of other curvatures and optima.

The sites' losses are ``curvature / 2 * (w - optimum) ** 2``, weight by weight, so the common optimum is the mean of the
optima, weighted by curvature. Steps are taken by PyTorch's optimizer with what an algorithm adds to the gradients and
what its sites keep; updates are stored and aggregated as in a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from client.runner.gradient_memory import memory_of
from client.training.proximal import ProximalTerm
from common.config.federation import FederationConfig
from common.config.schedule import poly_learning_rate
from common.protocol.codec import Task, Vector
from common.weights.encoding import ErrorFeedback, vector_of
from server.rounds.aggregation import StoredUpdates
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.strategy import StrategyState, remembered
from tests.server.rounds.test_admission import GOOD

SIZE = 40


@dataclass
class Descent:
    """Sites with their curvatures and optima, one a row, and a folder for what they keep."""

    config: FederationConfig
    folder: Path
    curvatures: np.ndarray
    optima: np.ndarray
    scales: dict[str, float] = field(default_factory=dict)
    scans: list[int] = field(default_factory=list)

    @property
    def optimum(self) -> np.ndarray:
        return np.average(self.optima, axis=0, weights=self.curvatures)

    def steps(self, site: int) -> int:
        return self.config.training.steps_of(self.scans[site] if self.scans else 1)

    def trained(
        self,
        is_present: Callable[[int, int], bool] = lambda number, site: True,
        does_count: Callable[[int], bool] = lambda number: True,
    ) -> tuple[Vector, StrategyState]:
        """The model and the strategy's state after all rounds; a round that does not count leaves both as they were."""
        config, count = self.config, len(self.optima)
        strategy = make_strategy(config, count)
        weights = np.zeros(SIZE, np.float32)
        state = StrategyState({name: np.zeros(SIZE, np.float32) for name in strategy.state_vectors})
        memories = [memory_of(config, self.folder / str(site), str(site)) for site in range(count)]
        feedback = [ErrorFeedback() for _ in range(count)]
        last = [0] * count
        for number in range(1, config.rounds + 1):
            contents, results = {}, {}
            task = Task("r1", "d", number, config.rounds, True, "m", upload=config.transport.upload)
            present = [site for site in range(count) if is_present(number, site)]
            for site in present:
                memory, task = memories[site], replace(task, counted_last=last[site])
                received = [state.vectors[name] for name in config.strategy.sent_vectors]
                correction = memory.correction(task, SIZE, received) if memory else None
                update = self.local_update(site, number, weights, correction)
                content = np.concatenate([data for _, data in feedback[site].encode(update, task.upload)])
                if memory is not None and correction is not None:
                    memory.remember(task, self.steps(site), correction, vector_of(content, SIZE, task.upload))
                contents[f"s{site}"] = content
                results[f"s{site}"] = replace(GOOD, site=f"s{site}", round=number, steps=self.steps(site))
            if not contents or not does_count(number):
                continue
            updates = StoredUpdates(
                results, dict.fromkeys(results, 1.0), contents, SIZE, config.transport.upload, self.scales
            )
            [step] = strategy.aggregate(updates, weights, state)
            weights, state = step.weights, StrategyState(step.state, state.numbers)
            for name in remembered(updates):
                last[int(name[1:])] = number
        return weights, state

    def local_update(self, site: int, number: int, start: Vector, correction: Vector | None) -> Vector:
        training, strategy = self.config.training, self.config.strategy
        weights = nn.Parameter(torch.tensor(start))
        optimizer = torch.optim.SGD(
            [weights], training.learning_rate, training.momentum, nesterov=training.momentum > 0
        )
        constant = [] if correction is None else [torch.tensor(correction)]
        term = ProximalTerm([weights], strategy.proximal_mu or strategy.feddyn_alpha or 0.0, constant)
        curvature, optimum = (
            torch.tensor(values[site], dtype=torch.float32) for values in (self.curvatures, self.optima)
        )
        count = self.steps(site)
        total = self.config.rounds * count
        for step in range((number - 1) * count, number * count):
            for group in optimizer.param_groups:
                group["lr"] = poly_learning_rate(training.learning_rate, step, total, training.poly_power)
            weights.grad = curvature * (weights.detach() - optimum)
            term.add_gradient()
            if training.gradient_clip > 0:
                nn.utils.clip_grad_norm_([weights], training.gradient_clip)
            optimizer.step()
        moved: Vector = weights.detach().numpy() - start
        return moved
