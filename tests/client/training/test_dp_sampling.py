"""Poisson sampling by its frequencies; what is drawn for a patient depends on nobody else; noise sources."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, chisquare

from client.training.dp_sampling import PatientSampler, draw_patients, repeatable_key, scans_by_patient
from common.imaging.patches.sampler import PatchCutter
from tests import tiny

NAMES = [f"patient-{index}" for index in range(6)]
KEY = repeatable_key(11, 1, "training")
ALARM = 1e-6
"""Probability with which a statistical test here fails although the code is right."""


@pytest.mark.parametrize("sample_rate", [0.03, 0.3, 0.9])
def test_frequencies_are_those_of_independent_coins(sample_rate: float) -> None:
    steps = 4000
    taken = np.zeros((steps, len(NAMES)), bool)
    for step in range(steps):
        taken[step, draw_patients(KEY, NAMES, sample_rate, step)] = True
    for column in taken.T:
        assert binomtest(int(column.sum()), steps, sample_rate).pvalue > ALARM / len(NAMES)
    # How many take part, empty draws included, is binomial: so they are independent of each other.
    sizes = np.bincount(taken.sum(1), minlength=len(NAMES) + 1)
    expected = steps * binom.pmf(range(len(NAMES) + 1), len(NAMES), sample_rate)
    likely = expected >= 5
    assert sizes[0] > 0 or sample_rate == 0.9
    observed, wanted = sizes[likely], expected[likely]
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > ALARM
    # And from step to step: how often a patient takes part twice running.
    twice = int((taken[1:] & taken[:-1])[::2].sum())
    assert binomtest(twice, taken[1::2].size, sample_rate**2).pvalue > ALARM


def test_everybody_takes_part_at_rate_one() -> None:
    assert all(draw_patients(KEY, NAMES, 1.0, step) == list(range(6)) for step in range(50))


def test_a_patient_who_comes_or_goes_changes_no_other_draw() -> None:
    for step in range(200):
        everyone = {NAMES[position] for position in draw_patients(KEY, NAMES, 0.5, step)}
        fewer = NAMES[:2] + NAMES[3:]
        assert {fewer[position] for position in draw_patients(KEY, fewer, 0.5, step)} == everyone - {NAMES[2]}


def test_keys_differ_by_seed_round_and_use() -> None:
    arguments = [(0, 1, "training"), (1, 1, "training"), (0, 2, "training"), (0, 1, "validation"), (0, 11, "x")]
    assert len({repeatable_key(*each) for each in arguments}) == len(arguments)
    draws = [[draw_patients(repeatable_key(*each), NAMES, 0.5, step) for step in range(30)] for each in arguments]
    assert all(draws[0] != other for other in draws[1:])


def sampler(draws: list[tuple[int, int]], fraction: float, count: int) -> PatientSampler:
    cases = [tiny.ball(name, index) for index, name in enumerate(NAMES)]
    return PatientSampler(cases, draws, PatchCutter((16, 16, 16), None, ()), count, fraction, KEY)


def test_a_patients_patches_depend_on_step_and_name_alone() -> None:
    alone = sampler([(7, 3)], 0.5, 2).batch(0)
    in_company = sampler([(6, 0), (7, 1), (7, 3)], 0.5, 2).batch(2)
    assert alone.cases == in_company.cases == (NAMES[3], NAMES[3])
    assert torch.equal(alone.image, in_company.image)
    assert not torch.equal(alone.image, sampler([(8, 3)], 0.5, 2).batch(0).image)
    assert not torch.equal(alone.image[0], alone.image[1])


def test_several_scans_of_a_patient_are_drawn_as_one_patient() -> None:
    """As many patches as from anybody else, from all of his scans in the long run."""
    cases = [replace(tiny.ball(name, index), patient=f"p{index % 2}") for index, name in enumerate(NAMES[:5])]
    patients = scans_by_patient(cases)
    assert {patient: [case.name for case in scans] for patient, scans in patients.items()} == {
        "p0": [NAMES[0], NAMES[2], NAMES[4]],
        "p1": [NAMES[1], NAMES[3]],
    }
    draws = [(step, 0) for step in range(40)]
    source = PatientSampler(cases, draws, PatchCutter((16, 16, 16), None, ()), 2, 0.5, KEY)
    batches = [source.batch(index) for index in range(40)]
    assert {len(batch.cases) for batch in batches} == {2}
    counts = Counter(name for batch in batches for name in batch.cases)
    assert set(counts) == {NAMES[0], NAMES[2], NAMES[4]}
    assert chisquare(list(counts.values())).pvalue > ALARM


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 2), (0.25, 4), (1.0, 1), (0.0, 2)])
def test_the_share_of_patches_on_foreground_is_exact_per_patient(fraction: float, count: int) -> None:
    """With whole shares every patient has exactly that many; the cutter is asked as it would be in training."""

    class Counting(PatchCutter):
        asked = 0

        def patch(self, case, on_foreground, random):
            self.asked += on_foreground
            return super().patch(case, on_foreground, random)

    cutter = Counting((16, 16, 16), None, ())
    cases = [tiny.ball(name, index) for index, name in enumerate(NAMES)]
    source = PatientSampler(cases, [(step, step % 6) for step in range(12)], cutter, count, fraction, KEY)
    for index in range(12):
        cutter.asked = 0
        source.batch(index)
        assert cutter.asked == fraction * count
