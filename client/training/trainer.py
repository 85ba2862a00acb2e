"""One site's local training and validation.

Training is stateless between rounds: every round starts a fresh optimizer on the global weights and draws patches that
depend only on (seed, step). After a crash a site therefore trains exactly as without it. Where an algorithm keeps
something at the sites, it is handed in as ``correction`` (``client.runner.gradient_memory``).

``client.training.dp_trainer`` has the differentially private version: the same loop with another step and other scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.proximal import ProximalTerm
from client.training.scaled_step import NonFiniteLossError, make_step
from client.training.weight_gradients import ChannelsLastWeightGradients, is_faster
from common.config.federation import TrainingConfig
from common.config.schedule import poly_learning_rate
from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import Batch, BatchSource, PatchSampler, prefetch
from common.imaging.sliding_window import WindowOptions, sliding_window
from common.losses import build_loss
from common.metrics import dice
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.protocol.codec import Vector, WeightLayout
from common.system.devices import autocast_dtype, keep_freed_memory

StepCallback = Callable[[int, float | None], None]
NextBatch = Callable[[], Batch]


@dataclass(frozen=True)
class Training:
    """Result of a round of local training: change of the weights, mean loss (NaN if private), seconds."""

    update: Vector
    steps: int
    loss: float
    seconds_data: float
    seconds_compute: float


@dataclass(frozen=True)
class Validation:
    """Scores of some weights on the site's validation patients.

    Attributes
    ----------
    dice
        Label -> mean over the scans that have the label or its prediction (if private, noised mean over all patients);
        NaN if there are none.
    loss
        Mean over scans; NaN if there are none, or if the loss is private.
    """

    dice: dict[int, float]
    loss: float
    seconds: float


@dataclass(frozen=True)
class LocalSteps:
    """The optimisation steps of a round.

    Attributes
    ----------
    source, numbers
        The batches to prepare, in order.
    step
        Makes one step with as many batches as it requests; returns the mean loss, or None if that is private.
    """

    source: BatchSource
    numbers: Sequence[int]
    step: Callable[[int, NextBatch], Tensor | None]


class Trainer:
    """Trains and scores one model, for one site after another; every call brings the weights.

    Only parameters that require a gradient are trained; the update has zeros for all others.

    Parameters
    ----------
    model
        The network of ``plan``; shared by all sites simulated in this process.
    plan, config
        The plan and training settings that all sites agreed to.
    total_steps
        ``local_steps`` of all rounds together, for the learning rate schedule.
    device
        Device to compute on.

    Attributes
    ----------
    proximal_mu
        Strength of the term of FedProx and FedDyn (``client.training.proximal``); 0 without it.
    """

    proximal_mu = 0.0

    def __init__(
        self, model: nn.Module, plan: Plan, config: TrainingConfig, total_steps: int, device: torch.device
    ) -> None:
        self.plan = plan
        self.config = config
        self.total_steps = total_steps
        self.device = device
        self.layout = WeightLayout.of(model)
        # On CPUs, channels-last speeds up convolutions but slows the backward pass of GroupNorm down much more.
        self._memory_format = torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format
        self._model = model.to(device)
        self._network = torch.compile(self._model) if config.compile else self._model
        self._autocast = autocast_dtype(device, config.precision)
        # A compiled network has convolutions of its own.
        self._reorders = not config.compile and is_faster(
            device, self._autocast, torch.backends.cpu.get_cpu_capability()
        )
        self._loss = build_loss(config.loss, config.class_weights, plan.model.deep_supervision).to(device)
        self._validation_loss = build_loss(config.loss, config.class_weights, False).to(device)
        self._term = ProximalTerm((), 0.0)

    @property
    def model(self) -> nn.Module:
        """The network; every call overwrites its weights."""
        return self._model

    @property
    def precision(self) -> str:
        """The number format of forward and backward passes."""
        return str(self._autocast or torch.float32).removeprefix("torch.")

    @property
    def trained_parameters(self) -> int:
        """How many numbers of the model are trained."""
        return sum(parameter.numel() for parameter in self._trained)

    @property
    def privacy(self) -> PrivacyPlan | None:
        """The privacy cost of a round; None without differential privacy."""
        return None

    def train(
        self,
        weights: Vector,
        cases: Sequence[CachedCase],
        round_number: int,
        seed: int,
        on_step: StepCallback | None = None,
        correction: Vector | None = None,
    ) -> Training:
        """Train the site's steps of a round (``config.steps_of``) from the global ``weights``.

        Parameters
        ----------
        weights
            The global model, flat.
        cases
            The site's training cases.
        round_number
            1 for the first; determines the learning rate and which patches are drawn.
        seed
            The site's own seed.
        on_step
            Called after each step with the number of steps done and the loss, None if that is private.
        correction
            Flat vector to add to every gradient, before it is clipped.

        Raises
        ------
        NonFiniteLossError
            The loss or a weight is NaN or infinite.
        """
        keep_freed_memory()
        self.layout.load(self._model, weights)
        self._model.train()
        # Validation may have left the weights in the memory format that is fastest for inference.
        self._model.to(memory_format=self._memory_format)  # type: ignore[call-overload]  # -- not in torch's hints
        optimizer = self._make_optimizer()
        self._term = ProximalTerm(self._trained, self.proximal_mu, self._split(correction))
        count = self.config.steps_of(len(cases))
        first = (round_number - 1) * count
        steps, total = range(first, first + count), self.total_steps * count // self.config.local_steps
        local = self._local_steps(cases, round_number, seed, steps, optimizer)
        pinned = self.device.type == "cuda"
        losses: list[Tensor] = []
        waited, started = 0.0, time.perf_counter()
        with closing(prefetch(local.source, local.numbers, self.config.workers, pin_memory=pinned)) as batches:

            def next_batch() -> Batch:
                nonlocal waited
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                return batch

            for step in steps:
                self._set_learning_rate(optimizer, step, total)
                loss = local.step(step, next_batch)
                if loss is not None:
                    losses.append(loss)
                if on_step is not None:
                    on_step(step - first + 1, None if loss is None else self._finite(loss))
        mean_loss = self._finite(torch.stack(losses).mean()) if losses else math.nan
        seconds = time.perf_counter() - started
        update = self.layout.flatten(self._model.state_dict()) - weights
        if not np.isfinite(update).all():
            raise NonFiniteLossError("training produced non-finite weights; lower training.learning_rate")
        return Training(update, len(steps), mean_loss, waited, seconds - waited)

    def validate(
        self, weights: Vector, cases: Sequence[CachedCase], round_number: int = 0, seed: int = 0
    ) -> Validation:
        """Score ``weights`` for the server: exactly, or with noise.

        Parameters
        ----------
        weights
            The global model, flat.
        cases
            The site's validation cases.
        round_number, seed
            As in ``train``; only noise depends on them.
        """
        del round_number, seed
        return self.score(weights, cases)

    def score(self, weights: Vector, cases: Sequence[CachedCase]) -> Validation:
        """Score ``weights`` exactly, on whole volumes at the plan's spacing, case by case.

        With differential privacy, this stays at the site.
        """
        started = time.perf_counter()
        scores: dict[int, list[float]] = {label: [] for label in self.plan.labels}
        losses = []
        for logits, truth in self._predictions(weights, cases):
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

    def _predictions(
        self, weights: Vector, cases: Sequence[CachedCase]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """Yield the logits (classes, x, y, z) and the label map (x, y, z) of every case."""
        self.layout.load(self._model, weights)
        self._model.eval()
        options = WindowOptions(device=self.device, precision=self.config.precision)
        for case in cases:
            logits = sliding_window(self._model, np.asarray(case.image), self.plan.patch_size, options)
            yield logits, np.asarray(case.label)

    def _score_loss(self, logits: np.ndarray, truth: np.ndarray) -> float:
        with torch.inference_mode():
            target = torch.from_numpy(np.array(truth))[None].to(self.device)
            loss: Tensor = self._validation_loss(torch.as_tensor(logits)[None].to(self.device), target)
        return float(loss)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _split(self, vector: Vector | None) -> list[Tensor]:
        """Return a flat vector as one tensor for each trained parameter; none without a vector."""
        if vector is None:
            return []
        named = self.layout.split(vector)
        trained = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        return [torch.from_numpy(np.array(named[name])).to(self.device) for name in trained]

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                self._trained,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.momentum > 0,
            )
        return torch.optim.AdamW(self._trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def _set_learning_rate(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> None:
        rate = poly_learning_rate(self.config.learning_rate, step, total, self.config.poly_power)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def _local_steps(
        self,
        cases: Sequence[CachedCase],
        round_number: int,
        seed: int,
        steps: Sequence[int],
        optimizer: torch.optim.Optimizer,
    ) -> LocalSteps:
        """Make the steps of a round; ``steps`` are counted over the whole federation."""
        del round_number
        config = self.config
        sampler = PatchSampler(
            cases,
            self.plan.patch_size,
            config.patches_per_step(self.plan),
            config.foreground_fraction,
            config.augmentation,
            self.plan.mirror_axes,
            seed,
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self._autocast is torch.float16)
        term = self._term

        def change_gradients() -> None:
            term.add_gradient()
            if config.gradient_clip > 0:
                nn.utils.clip_grad_norm_(self._trained, config.gradient_clip, foreach=True)

        def step(number: int, next_batch: NextBatch) -> Tensor:
            del number
            batch = next_batch()
            return make_step(optimizer, scaler, lambda: self._forward(batch.image, batch.label), change_gradients)

        return LocalSteps(sampler, steps, step)

    def _forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Return the mean loss of some patches, which may be on the CPU."""
        image = image.to(self.device, memory_format=self._memory_format, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        with self._autocast_context(), ChannelsLastWeightGradients() if self._reorders else nullcontext():
            output = self._network(image)
        # The loss sums over many voxels, so compute it in float32, outside autocast.
        loss: Tensor = self._loss(output, label)
        return loss

    def _autocast_context(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._autocast)

    @staticmethod
    def _finite(loss: Tensor) -> float:
        value = float(loss)
        if not math.isfinite(value):
            raise NonFiniteLossError(
                "the loss is not finite; lower training.learning_rate or check the scans' intensities"
            )
        return value
