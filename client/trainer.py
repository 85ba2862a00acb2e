"""One site's local training and validation.

A site keeps nothing between rounds but its data: every round starts a fresh optimizer on the global weights and draws
patches that depend only on (seed, step). A site that comes back after a crash therefore trains exactly as if it had
never been away, and a run can be resumed without asking the sites for anything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.config import TrainingConfig
from common.devices import autocast_dtype, keep_freed_memory
from common.errors import FedvoxError
from common.imaging.cache import CachedCase
from common.imaging.inference import sliding_window
from common.imaging.patches import Batch, PatchSampler, prefetch
from common.losses import build_loss
from common.metrics import dice
from common.plan import Plan
from common.protocol import Vector, WeightLayout

StepCallback = Callable[[int, float], None]


class NonFiniteLossError(FedvoxError):
    """The loss became infinite or NaN; the update would poison the model and is not sent."""


@dataclass(frozen=True)
class Training:
    """What a round of local training gave: weights minus the global ones, mean loss, seconds."""

    update: Vector
    steps: int
    loss: float
    seconds_data: float
    seconds_compute: float


@dataclass(frozen=True)
class Validation:
    """Scores of some weights on the site's validation patients.

    dice: label -> mean over the patients in whom the label or its prediction exists; NaN if there is none.
    loss: mean over patients.
    """

    dice: dict[int, float]
    loss: float
    seconds: float


def poly_learning_rate(base: float, step: int, total: int, power: float) -> float:
    """``base * (1 - step / total) ** power``: the rate of step 0 is ``base``, after the last step it is 0."""
    return base * float((1 - step / total) ** power)


class Trainer:
    """Trains and scores one model for one site after another; weights come with every call.

    Args:
        model: the network of ``plan``; shared by all sites that are simulated in this process.
        plan, config: what all sites agreed to.
        total_steps: of local optimisation over the whole federation, for the learning rate.
        device: where to compute.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, config: TrainingConfig, total_steps: int, device: torch.device
    ) -> None:
        self.plan = plan
        self.config = config
        self.total_steps = total_steps
        self.device = device
        self.layout = WeightLayout.of(model)
        # On CPUs convolutions gain from channels-last, but the backward pass of GroupNorm loses many times more.
        self._memory_format = torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format
        self._model = model.to(device)
        self._network = torch.compile(self._model) if config.compile else self._model
        self._autocast = autocast_dtype(device, config.precision)
        self._loss = build_loss(config.loss, config.class_weights, plan.model.deep_supervision).to(device)
        self._validation_loss = build_loss(config.loss, config.class_weights, False).to(device)

    @property
    def precision(self) -> str:
        """The number format of forward and backward passes."""
        return str(self._autocast or torch.float32).removeprefix("torch.")

    def train(
        self,
        weights: Vector,
        cases: Sequence[CachedCase],
        round_number: int,
        seed: int,
        on_step: StepCallback | None = None,
    ) -> Training:
        """Trains ``config.local_steps`` steps from the global ``weights``.

        Args:
            weights: the global model, flat.
            cases: the site's training patients.
            round_number: 1 for the first; decides the learning rate and which patches are drawn.
            seed: the site's own.
            on_step: called after each step with the number of steps done and the loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        keep_freed_memory()
        self.layout.load(self._model, weights)
        self._model.train()
        # Validation may have left the weights in the layout that is fastest without a backward pass.
        self._model.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        optimizer = self._make_optimizer()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self._autocast is torch.float16)
        first = (round_number - 1) * self.config.local_steps
        steps = range(first, first + self.config.local_steps)
        sampler = self._make_sampler(cases, seed)
        pinned = self.device.type == "cuda"
        losses: list[torch.Tensor] = []
        waited, started = 0.0, time.perf_counter()
        with closing(prefetch(sampler, steps, self.config.workers, pin_memory=pinned)) as batches:
            for step in steps:
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                losses.append(self._step(batch, optimizer, scaler, step))
                if on_step is not None:
                    on_step(step - first + 1, self._finite(losses[-1]))
        mean_loss = self._finite(torch.stack(losses).mean())
        seconds = time.perf_counter() - started
        update = self.layout.flatten(self._model.state_dict()) - weights
        if not np.isfinite(update).all():
            raise NonFiniteLossError("training gave weights that are not finite; lower training.learning_rate")
        return Training(update, len(losses), mean_loss, waited, seconds - waited)

    def validate(self, weights: Vector, cases: Sequence[CachedCase]) -> Validation:
        """Scores ``weights`` on whole volumes at the plan's spacing, patient by patient."""
        started = time.perf_counter()
        self.layout.load(self._model, weights)
        self._model.eval()
        scores: dict[int, list[float]] = {label: [] for label in self.plan.labels}
        losses = []
        for case in cases:
            logits = sliding_window(
                self._model,
                np.asarray(case.image),
                self.plan.patch_size,
                device=self.device,
                precision=self.config.precision,
            )
            truth = np.asarray(case.label)
            predicted = logits.argmax(axis=0)
            for label, values in scores.items():
                score = dice(predicted == label, truth == label)
                if (truth == label).any() or (predicted == label).any():
                    values.append(score)
            losses.append(self._score_loss(logits, truth))
        return Validation(
            {label: float(np.mean(values)) if values else math.nan for label, values in scores.items()},
            float(np.mean(losses)) if losses else math.nan,
            time.perf_counter() - started,
        )

    def _score_loss(self, logits: np.ndarray, truth: np.ndarray) -> float:
        with torch.inference_mode():
            target = torch.from_numpy(np.array(truth))[None].to(self.device)
            loss: torch.Tensor = self._validation_loss(torch.as_tensor(logits)[None].to(self.device), target)
        return float(loss)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                self._model.parameters(),
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.momentum > 0,
            )
        return torch.optim.AdamW(
            self._model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def _make_sampler(self, cases: Sequence[CachedCase], seed: int) -> PatchSampler:
        config = self.config
        return PatchSampler(
            cases,
            self.plan.patch_size,
            config.batch_size,
            config.foreground_fraction,
            config.augmentation,
            self.plan.mirror_axes,
            seed,
        )

    def _step(
        self, batch: Batch, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, step: int
    ) -> torch.Tensor:
        image = batch.image.to(self.device, memory_format=self._memory_format, non_blocking=True)
        label = batch.label.to(self.device, non_blocking=True)
        rate = poly_learning_rate(self.config.learning_rate, step, self.total_steps, self.config.poly_power)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with self._autocast_context():
            output = self._network(image)
        # The loss sums over many voxels: outside autocast, in float32.
        loss: torch.Tensor = self._loss(output, label)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.gradient_clip > 0:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self.config.gradient_clip, foreach=True)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    def _autocast_context(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._autocast)

    @staticmethod
    def _finite(loss: torch.Tensor) -> float:
        value = float(loss)
        if not math.isfinite(value):
            raise NonFiniteLossError(
                "the loss is not finite; lower training.learning_rate or check the scans' intensities"
            )
        return value
