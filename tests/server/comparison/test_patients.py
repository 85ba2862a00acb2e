"""Scores by patient: means over labels, scans and seeds, and pairs of arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.comparison.patients import own_scores, paired, patient_scores, pooled
from server.comparison.scores import METRICS, ModelScores, Score


def score(site: str, patient: str, dice: float, case: str = "scan", label: int = 1) -> Score:
    return Score(site, patient, case, label, dict.fromkeys(METRICS, dice))


def model(*scores: Score, arm: str = "fedavg", seed: int = 0, model_site: str = "") -> ModelScores:
    return ModelScores(arm, seed, model_site, scores)


def test_a_patient_with_many_scans_counts_as_one() -> None:
    scans = [score("a", "anna", 0.2, f"scan_{number}") for number in range(9)]
    found = patient_scores([model(*scans, score("a", "bert", 0.8))], "dice")
    assert found == {("a", "anna"): {0: pytest.approx(0.2)}, ("a", "bert"): {0: 0.8}}
    assert pooled(paired([found], ["a"]))[0].mean() == pytest.approx(0.5)


def test_undefined_values_are_left_out_of_means_and_so_are_patients_without_any() -> None:
    scores = model(*(score("a", "anna", 0.4), score("a", "anna", math.nan, label=2)), score("a", "bert", math.nan))
    assert patient_scores([scores], "hd95_mm") == {("a", "anna"): {0: 0.4}}
    assert patient_scores([scores], "hd95_mm", label=2) == {}


def test_equal_names_at_two_sites_are_two_patients() -> None:
    found = patient_scores([model(score("a", "1", 0.2), score("b", "1", 0.6))], "dice")
    assert [group.tolist() for group in paired([found], ["a", "b"])] == [[[0.2]], [[0.6]]]


def test_a_site_uses_its_own_model_or_the_shared_one() -> None:
    both = score("a", "anna", 0.5), score("b", "bert", 0.7)
    other = score("a", "anna", 0.1), score("b", "bert", 0.9)
    local = [model(*both, arm="local", model_site="a"), model(*other, arm="local", model_site="b")]
    assert own_scores(local, "dice") == {("a", "anna"): {0: 0.5}, ("b", "bert"): {0: 0.9}}
    assert own_scores([model(*both)], "dice") == {("a", "anna"): {0: 0.5}, ("b", "bert"): {0: 0.7}}


def test_arms_are_paired_by_patient_and_seed() -> None:
    """Anna has both seeds in both arms, Bert one of two, and Carl none in common."""
    one = {("a", "anna"): {0: 0.2, 1: 0.4}, ("a", "bert"): {0: 0.5, 1: 0.9}, ("a", "carl"): {0: 0.1}}
    other = {("a", "anna"): {0: 0.6, 1: 1.0}, ("a", "bert"): {1: 0.7}, ("a", "carl"): {1: 0.3}, ("b", "dora"): {0: 1.0}}
    groups = paired([one, other], ["a", "b"])
    np.testing.assert_allclose(groups[0], [[0.3, 0.8], [0.9, 0.7]])
    assert groups[1].shape == (0, 2)
