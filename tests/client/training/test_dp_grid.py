"""What leaves lies on a public grid: attacks on the last bits of scores and updates, with candidates in hand.

An attacker knows the weights and all patients but for one, for whom they have candidates. They ask of each candidate
whether the mechanism could have given this very reply. With floating-point noise only the truth can (Mironov 2012); on
the grid every candidate can, and what remains is the guess that epsilon allows.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from client.training.dp_clipping import ClippedSum
from client.training.dp_noise import DEVIATION, DiscreteGaussian, steps_of
from client.training.dp_trainer import PrivateTrainer
from common.imaging.cache.case_cache import CachedCase
from common.metrics import dice
from common.models.trainable import Trainable
from common.models.unet3d import build_model
from common.protocol.codec import Vector
from tests import tiny
from tests.client.training.one_step import RATE, trainer

CASES = [tiny.ball(f"case-{index}", index) for index in range(6)]
NOISE = 4.0
MAX_NORM = 0.25
TRIALS = 400
ALARM = 1e-6
"""Probability with which a statistical test here fails although the code is right."""

Attack = Callable[[float, float], bool]
"""Says whether a reply, as a sum over patients, fits a candidate's exact sum."""


def private_trainer(trainable: Trainable = "all") -> tuple[PrivateTrainer, Vector]:
    """One step of plain SGD in which all patients take part, and weights whose head is zero."""
    private = trainer(NOISE, trainable=trainable, sample_rate=1.0, max_grad_norm=MAX_NORM)
    torch.manual_seed(7)
    model = build_model(private.plan.model)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.startswith("heads."):
                values.zero_()
    return private, private.layout.flatten(model.state_dict())


class TestScores:
    """A single validation patient, whose label volume the attacker wants to know to the voxel."""

    def cases(self, voxels: int) -> list[CachedCase]:
        label = np.zeros((16, 16, 16), np.uint8)
        label.reshape(-1)[:voxels] = 1
        return [replace(CASES[0], label=label, image=CASES[0].image[:, :16, :16, :16])]

    def candidates(self) -> tuple[PrivateTrainer, Vector, list[list[CachedCase]], list[float]]:
        """Volumes of one image, and of each the exact sum: its score less 1/2, in double precision."""
        trainer, _ = private_trainer()
        torch.manual_seed(3)
        weights = trainer.layout.flatten(build_model(trainer.plan.model).state_dict())
        found = [self.cases(count) for count in range(1000, 1064)]
        [(logits, _)] = trainer._predictions(weights, found[0])
        predicted = logits.argmax(axis=0) == 1
        return trainer, weights, found, [float(dice(predicted, case.label == 1)) - 0.5 for [case] in found]

    @staticmethod
    def float_attack(reply: float, exact: float) -> bool:
        """Fits if some float32 noise gives the reply bit by bit."""
        scale = NOISE / 2
        near = np.float32((reply - exact) / scale)
        tries = [near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))]
        return any(exact + scale * float(one) == reply for one in tries)

    @staticmethod
    def grid_attack(reply: float, exact: float) -> bool:
        """Fits if the noise is a whole number of steps, had the exact sum been left off the grid."""
        steps = (reply - exact) * 2 * steps_of(NOISE)
        return abs(steps - round(steps)) < 0.01

    def test_old_noise_tells_the_volume(self) -> None:
        """The attack works where there is something to find: exact score plus float32 noise."""
        _, _, _, exact = self.candidates()
        random = np.random.default_rng(0)
        for truth in range(0, len(exact), 7):
            reply = exact[truth] + NOISE / 2 * float(random.standard_normal(dtype=np.float32))
            fits = {exact[index] for index in range(len(exact)) if self.float_attack(reply, exact[index])}
            assert fits == {exact[truth]}

    @pytest.mark.parametrize("attack", [float_attack, grid_attack])
    def test_no_candidate_fits_better_than_another(self, attack: Attack) -> None:
        """Guess which of two neighbouring volumes it was; where low bits say nothing, toss a coin."""
        trainer, weights, found, exact = self.candidates()
        first, second = 3, 40
        assert exact[first] != exact[second]
        random = np.random.default_rng(1)
        right = played = number = 0
        while played < TRIALS // 4:
            number += 1
            truth = (first, second)[int(random.integers(2))]
            mean = trainer.validate(weights, found[truth], number).dice[1]
            if mean in {0.0, 1.0}:  # cut off: no bits are left to look at
                continue
            fits = [index for index in (first, second) if attack(mean - 0.5, exact[index])]
            guess = fits[0] if len(fits) == 1 else (first, second)[int(random.integers(2))]
            right, played = right + (guess == truth), played + 1
        # The best guess of all is right with probability 1/2 + (distance / deviation) / sqrt(8 pi), here 0.504.
        assert binomtest(right, played, 0.51, alternative="greater").pvalue > 1e-4

    def test_every_candidate_explains_every_reply(self) -> None:
        """The attacker who knows the mechanism: each candidate needs noise that is as good as any other."""
        trainer, weights, found, exact = self.candidates()
        steps = 2 * steps_of(NOISE)
        seen = 0
        for number in range(1, 200):
            mean = trainer.validate(weights, found[0], number).dice[1]
            if mean in {0.0, 1.0}:
                continue
            seen += 1
            noised = round((mean - 0.5) * steps)
            for score in exact:
                noise = noised - int(score * steps)
                assert 0.5 + (int(score * steps) + noise) / steps == mean
                assert abs(noise) < 10.7 * DEVIATION
        assert seen > 10


class TestUpdates:
    """Which of six patients took part, from the head's values after one step from a head of zeros."""

    def sums(self, trainer: PrivateTrainer, weights: Vector) -> list[np.ndarray]:
        """The whole steps that each patient adds, as the attacker works them out."""
        found = []
        for case in CASES:
            trainer.layout.load(trainer._model, weights)
            parameters = [one for one in trainer._model.parameters() if one.requires_grad]
            steps = trainer._local_steps([case], 1, 0, range(1), torch.optim.SGD(parameters, lr=RATE))
            total = ClippedSum(parameters, NOISE)
            total.begin()
            total.begin_patient()
            batch = steps.source.batch(0)
            trainer._backward(batch.image, batch.label)
            total.add_patient(torch.tensor(MAX_NORM, dtype=torch.float64))
            found.append(total.sum.numpy().copy())
        return found

    def test_every_set_of_patients_explains_the_update(self) -> None:
        trainer, weights = private_trainer(trainable="head")
        patients = self.sums(trainer, weights)
        subsets = [
            list(chosen) for count in range(len(CASES) + 1) for chosen in itertools.combinations(range(6), count)
        ]
        moved = [np.count_nonzero(one) for one in patients]
        assert all(moved), "the patients' gradients must differ from nothing"
        for number in (1, 2, 3):
            update = trainer.train(weights, CASES, number, 0).update
            head = update[update != 0].astype(np.float64)
            assert head.size == patients[0].size
            noised = self.noised(-head)
            for chosen in subsets:
                exact = sum((patients[index] for index in chosen), np.zeros_like(noised))
                # The update is a difference of weights; the head's were zero, so it is the step itself.
                np.testing.assert_array_equal(self.step(exact, noised - exact), -head.astype(np.float32))
                assert np.abs(noised - exact).max() < 10.7 * DEVIATION

    @staticmethod
    def step(exact: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """The optimizer's step for a sum and noise."""
        total = ClippedSum([nn.Parameter(torch.zeros(exact.size))], NOISE)
        total.sum += torch.from_numpy(exact)
        total.finish(torch.from_numpy(noise), torch.tensor(MAX_NORM, dtype=torch.float64), len(CASES))
        found: np.ndarray = total.gradient.numpy() * np.float32(RATE)
        return found

    def noised(self, step: np.ndarray) -> np.ndarray:
        """Whole steps that give this optimizer's step bit by bit; float32 leaves a few to choose from."""
        near = np.rint(step * len(CASES) / RATE * steps_of(NOISE) / MAX_NORM).astype(np.int64)
        found = near.copy()
        for change in range(-40, 41):
            same = self.step(near + change, np.zeros_like(near)) == step.astype(np.float32)
            found[same] = near[same] + change
        return found

    def test_small_values_of_an_update_are_whole_steps(self) -> None:
        """Where float32 has the bits to tell, the noised sum is an integer; with floating-point noise it is none."""
        trainer, weights = private_trainer()
        update = trainer.train(np.zeros_like(weights), CASES, 1, 0).update
        steps = update.astype(np.float64) * len(CASES) / RATE * steps_of(NOISE) / MAX_NORM
        small = steps[np.abs(steps) < 2**20]
        assert small.size > 50
        assert np.abs(small - np.rint(small)).max() < 0.2


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 7.7, 130.0])
@pytest.mark.parametrize("size", [1, 5, 1000, 1_100_003])
@pytest.mark.parametrize("length", [0.2499, 0.25, 0.2500001, 3.0, 1e30])
def test_a_patients_integers_are_never_longer_than_promised(multiplier: float, size: int, length: float) -> None:
    """In exact arithmetic: the sum of squares of integers against (DEVIATION / multiplier)**2."""
    random = np.random.default_rng(size)
    for heavy in (False, True):
        values = random.standard_normal(size) ** (9 if heavy else 1)
        values *= length / np.linalg.norm(values)
        total = ClippedSum([nn.Parameter(torch.zeros(size))], multiplier)
        total.gradient.copy_(torch.from_numpy(values))
        total.add_patient(torch.tensor(MAX_NORM, dtype=torch.float64))
        squares = sum(int(one) ** 2 for one in total.sum.numpy()[total.sum.numpy() != 0])
        assert squares <= (Fraction(DEVIATION) / Fraction(multiplier)) ** 2
        # And hardly shorter, or signal would be lost: what is cut off is less than a step in each value.
        lost = (steps_of(multiplier) - math.sqrt(squares)) / steps_of(multiplier)
        assert lost < 1e-3 or length < MAX_NORM or size > 1000


def test_what_a_patient_adds_does_not_depend_on_the_others() -> None:
    """In float32 it did: rounding depends on what has been added before."""
    random = np.random.default_rng(2)
    vectors = [torch.from_numpy(random.standard_normal(5000).astype(np.float32)) for _ in range(5)]

    def total(order: Sequence[int]) -> torch.Tensor:
        found = ClippedSum([nn.Parameter(torch.zeros(5000))], 0.7)
        for index in order:
            found.gradient.copy_(vectors[index])
            found.add_patient(torch.tensor(1.0, dtype=torch.float64))
        return found.sum

    everyone = total(range(5))
    for order in itertools.permutations(range(5)):
        assert torch.equal(total(order), everyone)
    assert torch.equal(everyone - total([0, 1, 2, 3]), total([4]))


def test_loss_scale_changes_nothing_but_the_scale() -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal(999).astype(np.float32))
    sums = []
    for scale in (1.0, 1024.0):
        total = ClippedSum([nn.Parameter(torch.zeros(999))], 1.0)
        total.gradient.copy_(values * scale)
        total.add_patient(torch.tensor(3.0, dtype=torch.float64), scale)
        sums.append(total.sum)
    assert torch.equal(*sums)


def test_noise_is_added_to_integers() -> None:
    total = ClippedSum([nn.Parameter(torch.zeros(64))], 1.0)
    noise = torch.from_numpy(DiscreteGaussian(bytes(32)).draw(64))
    total.finish(noise, torch.tensor(2.0, dtype=torch.float64), 8.0)
    assert total.sum.dtype == torch.int64
    assert torch.equal(total.sum, noise.long())
    np.testing.assert_allclose(total.gradient, noise.double() / DEVIATION * 2 / 8, rtol=2e-6)
