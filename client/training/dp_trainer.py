"""Patient-level DP-SGD (Abadi et al. 2016) and noised scores: the private version of ``client.training.trainer``.

Neighbouring datasets differ by adding or removing one patient with all their scans; the number of patients is public,
because the site declares it. A site sends the update and the Dice of its validation patients. Both are sums of one
bounded contribution per patient, in whole steps of a public grid, to which discrete Gaussian noise is added once.
Losses are not sent.

The duration of a round is not protected; what is sent of it is rounded (``client.runner.client_app``).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from client.training.dp_clipping import ClippedSum, ClippingNorm
from client.training.dp_noise import DiscreteGaussian, steps_of
from client.training.dp_sampling import (
    KeySource,
    PatientSampler,
    draw_patients,
    fresh_key,
    repeatable_key,
    scans_by_patient,
)
from client.training.onednn_conv import OneDnnConvolutions, is_available
from client.training.trainer import LocalSteps, NextBatch, Trainer, Validation
from common.config.federation import FederationConfig, TrainingConfig
from common.config.privacy import PrivacyConfig
from common.errors import ConfigError
from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import PatchCutter
from common.metrics import dice
from common.models.memory import TRAINING_ADVICE, training_bytes
from common.models.trainable import train_only
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.privacy.calibration import gradient_noise
from common.protocol.codec import Vector
from common.system.devices import autocast_dtype, free_device_memory
from common.system.memory import require_memory

LOSS_SCALE = 1024.0
"""Loss scale for float16; constant, because an adaptive scale would leak information about individual patients."""


def make_trainer(config: FederationConfig, plan: Plan, device: torch.device, repeatable: bool = False) -> Trainer:
    """Make a federation's trainer: a private one if its file has ``privacy``. Use nothing else to make one.

    Parameters
    ----------
    config
        The federation.
    plan
        The federation's plan.
    device
        Device to compute on.
    repeatable
        Draw patients and noise from seeds, for simulations; at a hospital they must be unpredictable.

    Raises
    ------
    ConfigError
        If only one of plan and federation file is private.
    MemoryLimitError
        If a training step cannot fit into the memory of the machine or the GPU.
    """
    one_by_one = config.privacy is not None and (config.personal is None or config.personal.method == "norms")
    batch = 1 if one_by_one else config.training.patches_per_step(plan)
    value_bytes = 4 if autocast_dtype(device, config.training.precision) is None else 2
    wanted = training_bytes(plan.model, plan.patch_size, batch, value_bytes)
    where = "a training step" if device.type == "cpu" else "a training step on the GPU"
    require_memory(wanted, where, TRAINING_ADVICE, partial(free_device_memory, device))
    model = build_model(plan.model)
    train_only(model, config.training.trainable)
    total_steps = config.rounds * config.training.local_steps
    if (config.privacy is None) != (plan.privacy is None):
        raise ConfigError("privacy: is only in the plan or only in the federation file; make the plan again")
    if config.privacy is None:
        trainer = Trainer(model, plan, config.training, total_steps, device)
    else:
        key_of = repeatable_key if repeatable else fresh_key
        trainer = PrivateTrainer(model, plan, config.training, total_steps, device, config.privacy, key_of)
    trainer.proximal_mu = config.strategy.proximal_mu or config.strategy.feddyn_alpha or 0.0
    return trainer


class PrivateTrainer(Trainer):
    """Trains and scores under patient-level differential privacy.

    A step draws patients by Poisson sampling, computes each patient's mean gradient over ``patches_per_patient``
    patches, clips it to ``max_grad_norm``, sums, adds noise once and divides by the expected number of patients.
    Everything after the noise (scaling, FedProx's term, ``gradient_clip``, the optimizer) is post-processing and keeps
    the guarantee. Only one patient's patches are in memory at a time, and no layer needs per-sample gradients. Adaptive
    clipping restarts at ``max_grad_norm`` in every round, like everything else, so a site's work does not depend on
    earlier rounds.

    Parameters
    ----------
    model, plan, config, total_steps, device
        As in ``Trainer``; ``config.batch_size`` is not used.
    privacy
        Settings of differential privacy.
    key_of
        Source of a round's secret keys.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        config: TrainingConfig,
        total_steps: int,
        device: torch.device,
        privacy: PrivacyConfig,
        key_of: KeySource = fresh_key,
    ) -> None:
        super().__init__(model, plan, config, total_steps, device)
        self._privacy = privacy
        if plan.privacy is None:
            raise ValueError("the plan has no privacy")
        self._spends = plan.privacy
        self._key_of = key_of
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="noise-ahead")
        self._cutter = PatchCutter(plan.patch_size, config.augmentation, plan.mirror_axes)
        self._loss_scale = LOSS_SCALE if self._autocast is torch.float16 else 1.0

    @property
    def privacy(self) -> PrivacyPlan:
        """What a round costs the patients."""
        return self._spends

    def validate(
        self, weights: Vector, cases: Sequence[CachedCase], round_number: int = 0, seed: int = 0
    ) -> Validation:
        """Compute the noised mean Dice over the validation patients, NaN if no scores may leave; the loss is NaN.

        If a scan has neither a label nor its prediction, the label's Dice is 1. Every patient therefore contributes a
        vector of one Dice per label, averaged over their scans, minus 1/2, with an L2 norm of at most sqrt(labels) / 2.
        """
        started = time.perf_counter()
        labels = list(self.plan.labels)
        if self._spends.validation is None or not cases:
            return Validation(dict.fromkeys(labels, math.nan), math.nan, 0.0)
        scans = {patient: len(found) for patient, found in scans_by_patient(cases).items()}
        scores = {patient: np.zeros(len(labels)) for patient in scans}
        for case, (logits, truth) in zip(cases, self._predictions(weights, cases), strict=True):
            predicted = logits.argmax(axis=0)
            found = [dice(predicted == label, truth == label) - 0.5 for label in labels]
            scores[case.owner] += np.array(found) / scans[case.owner]
        # The longest vector of scores is as long as all steps; cutting towards zero makes none longer.
        steps = 2 * steps_of(self._spends.validation.noise_multiplier) / math.sqrt(len(labels))
        total = np.sum([(score * steps).astype(np.int64) for score in scores.values()], axis=0)
        total += self._noise(self._key_of(seed, round_number, "validation")).draw(len(labels))
        # Only what is noised is scaled.
        means = np.clip(0.5 + total / (steps * len(scans)), 0, 1)
        return Validation(dict(zip(labels, means.tolist(), strict=True)), math.nan, time.perf_counter() - started)

    def _local_steps(
        self,
        cases: Sequence[CachedCase],
        round_number: int,
        seed: int,
        steps: Sequence[int],
        optimizer: torch.optim.Optimizer,
    ) -> LocalSteps:
        privacy = self._privacy
        key = self._key_of(seed, round_number, "training")
        names = list(scans_by_patient(cases))
        drawn = {step: draw_patients(key, names, privacy.sample_rate, step) for step in steps}
        draws = [(step, position) for step, positions in drawn.items() for position in positions]
        sampler = PatientSampler(
            cases, draws, self._cutter, privacy.patches_per_patient, self.config.foreground_fraction, key
        )
        multiplier = gradient_noise(self._spends.training.noise_multiplier, privacy.adaptive_clipping)
        gradients = ClippedSum(self._trained, multiplier)
        norm = ClippingNorm(privacy.max_grad_norm, privacy.adaptive_clipping, self.device)
        noise = self._noise(key)
        expected = privacy.sample_rate * len(names)
        term = self._term

        def step(number: int, next_batch: NextBatch) -> None:
            gradients.begin()
            # Noise does not depend on the data, so a CPU draws it while a GPU computes.
            drawing = self._ahead.submit(noise.draw, gradients.size)
            for _ in drawn[number]:
                batch = next_batch()
                gradients.begin_patient()
                self._backward(batch.image, batch.label)
                norm.count(gradients.add_patient(norm.value, self._loss_scale))
            gradients.finish(torch.from_numpy(drawing.result()).to(self.device), norm.value, expected)
            norm.follow(noise, expected)
            term.add_gradient()
            if self.config.gradient_clip > 0:
                nn.utils.clip_grad_norm_(self._trained, self.config.gradient_clip, foreach=True)
            optimizer.step()

        return LocalSteps(sampler, range(len(draws)), step)

    def _backward(self, image: Tensor, label: Tensor) -> None:
        """Add the gradient of the patient's mean loss over patches to the parameters' gradients."""
        # On a CPU, one patch at a time: memory use stays constant, and a patch fits the caches.
        at_once = 1 if self.device.type == "cpu" else len(image)
        for start in range(0, len(image), at_once):
            some = slice(start, start + at_once)
            with self._convolutions():
                loss = self._forward(image[some], label[some])
            share = loss * (len(image[some]) / len(image) * self._loss_scale)
            share.backward()  # type: ignore[no-untyped-call]  # -- torch's

    def _convolutions(self) -> AbstractContextManager[object]:
        one_by_one = self.device.type == "cpu" and self._autocast is None and not self.config.compile
        return OneDnnConvolutions() if one_by_one and is_available() else nullcontext()

    def _noise(self, key: bytes) -> DiscreteGaussian:
        # A separate key: the draws of patients use the secret itself.
        return DiscreteGaussian(hashlib.sha256(key + b"noise").digest())
