"""What sites share of their data: exact sums, no small cell, and nothing that contradicts itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConfigError, DataError
from common.imaging.datasets.case import Case
from common.imaging.datasets.dataset import find_dataset
from common.planning.fingerprint import fingerprint_dataset
from common.planning.histogram import EXTENT, HOUNSFIELD, SPACING, Distribution, Scale, add, distribution
from common.planning.planner import make_plan
from common.planning.shared_fingerprint import SharedFingerprint, fingerprint_to_share, merge
from tests.common.planning.test_fingerprint import write_case

SCALES = (SPACING, EXTENT, HOUNSFIELD)


def one_each(values: list[float]) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


def names(count: int) -> list[str]:
    return [f"p{n}" for n in range(count)]


def cells_apart(one: Distribution, other: Distribution, scale: Scale) -> int:
    """How many cells lie between the medians of two distributions."""
    medians = np.array([one.percentile(50, scale), other.percentile(50, scale)])
    return int(np.ptp(scale.cells(scale.whole(medians))))


def test_cells_are_public_and_round() -> None:
    assert SPACING.typical[80:86] == (1.0, 1.06, 1.12, 1.18, 1.25, 1.32)
    assert SPACING.edges[80:82] == (0.975, 1.03)
    assert EXTENT.edges[:4] == (0.0, 1.0, 1.12, 1.25) and EXTENT.edges[31:34] == (31.5, 35.5, 40.0)
    assert HOUNSFIELD.edges[0] == -1200 and HOUNSFIELD.edges[-1] == 3200
    for scale in SCALES:
        assert list(scale.edges) == sorted(set(scale.edges))
    edges, typical = np.array(SPACING.edges), np.array(SPACING.typical)
    assert (edges[:-1] < typical).all() and (typical <= edges[1:]).all()


@pytest.mark.parametrize("scale", SCALES)
def test_every_value_is_in_the_cell_that_holds_it(scale: Scale) -> None:
    values = np.array([*scale.edges, *np.random.default_rng(0).uniform(scale.edges[0], scale.edges[-1], 500)])
    whole = scale.whole(values)
    for cell, value in zip(scale.cells(whole), whole / scale.parts, strict=True):
        inside = scale.edges[cell] <= value < scale.edges[cell + 1]
        assert inside or (value == scale.edges[-1] and cell == len(scale.edges) - 2)


def test_sums_are_those_of_whole_parts() -> None:
    found = distribution(one_each([0.7, 0.699999988, 1.2, 1.2]), names(4), SPACING, 2)
    assert (found.total, found.squares) == (3800, 2 * 700**2 + 2 * 1200**2)
    assert found.mean(SPACING) == 0.95 and found.std(SPACING) == pytest.approx(0.25, abs=1e-12)
    beyond = distribution(one_each([250.0, 1e6]), names(2), SPACING, 2)
    assert beyond.total == 2 * 95_000, "what is beyond the cells counts as their edge, so that nothing extreme shows"


def test_a_cell_shows_only_if_enough_patients_are_in_it() -> None:
    values, owners = [1.0] * 6 + [2.0] * 6 + [3.0] * 3 + [5.0] * 2, names(17)
    found = distribution(one_each(values), owners, SPACING, 5)
    assert [count for _, count in found.cells] == [6, 6] and found.suppressed == 5 and found.total == 37_000
    # Six scans of two patients are not six patients.
    same = distribution(one_each(values), [*("ab" * 3), *owners[6:]], SPACING, 5)
    assert [count for _, count in same.cells] == [6] and same.suppressed == 11


def test_few_suppressed_values_do_not_follow_from_the_rest() -> None:
    # Another cell goes with them, so that five or more are hidden together.
    found = distribution(one_each([1.0] * 9 + [2.0] * 6 + [7.0]), names(16), SPACING, 5)
    assert [count for _, count in found.cells] == [9] and found.suppressed == 7 and found.total is not None
    # The last cell goes too, and the sums with it: 7 mm would be their difference, and 1 the number of the odd ones.
    found = distribution(one_each([1.0] * 9 + [7.0]), names(10), SPACING, 5)
    assert (found.cells, found.count, found.suppressed, found.total, found.squares) == ((), 10, 10, None, None)
    assert found == distribution(one_each([1.0] * 6 + [7.0] * 2 + [0.3] * 2), names(10), SPACING, 5)


def test_an_intensity_cell_counts_patients_and_not_voxels() -> None:
    many = [np.full(1000, 45.0)] * 5 + [np.full(1000, 75.0)] * 5 + [np.full(1000, 2000.0)]
    found = distribution(many, names(11), HOUNSFIELD, 5)
    assert found.cells == ((70.0, 5000),) and found.suppressed == 6000


@settings(max_examples=30)
@given(values=st.lists(st.floats(0.3, 6), min_size=5, max_size=60), minimum=st.integers(2, 5))
def test_no_small_group_follows_from_cells_and_sums(values: list[float], minimum: int) -> None:
    found = distribution(one_each(values), names(len(values)), SPACING, minimum)
    found.check(SPACING, minimum)
    assert all(count >= minimum for _, count in found.cells)
    assert found.suppressed == 0 or found.suppressed >= minimum


@settings(max_examples=30)
@given(sizes=st.lists(st.lists(st.floats(0.3, 6), min_size=1, max_size=30), min_size=1, max_size=4))
def test_sites_add_up_exactly_to_the_pooled_data(sizes: list[list[float]]) -> None:
    parts = [distribution(one_each(values), names(len(values)), SPACING, 1) for values in sizes]
    pooled = [value for values in sizes for value in values]
    assert add(parts) == distribution(one_each(pooled), names(len(pooled)), SPACING, 1)


@settings(max_examples=30)
@given(values=st.lists(st.floats(2, 500), min_size=1, max_size=80), percent=st.sampled_from([10, 50, 99.5]))
def test_percentiles_are_right_to_within_a_cell(values: list[float], percent: float) -> None:
    found = distribution(one_each(values), names(len(values)), EXTENT, 1).percentile(percent, EXTENT)
    low, high = (np.percentile(values, percent, method=side) for side in ("lower", "higher"))
    assert low / 1.13 <= found <= high * 1.13


def test_equal_values_are_known_exactly_and_suppressed_ones_by_their_sums() -> None:
    assert distribution(one_each([0.977] * 7), names(7), SPACING, 5).percentile(50, SPACING) == 0.977
    assert distribution(one_each([0.977] * 4), names(4), SPACING, 5).percentile(50, SPACING) != 0.977
    spread = distribution(one_each([float(n) for n in range(1, 10)]), names(9), SPACING, 5)
    assert not spread.cells and spread.percentile(50, SPACING) == 5
    assert spread.percentile(10, SPACING) == pytest.approx(5 - 1.2816 * np.std(range(1, 10)), abs=1e-3)


def test_a_window_keeps_tails_that_are_not_shown() -> None:
    # One voxel in 50 of each patient is bright, each in cells of its own: the cells alone would end at 60 HU.
    values = [np.append(np.linspace(40.0, 59.9, 980), np.full(20, 300.0 + 100 * n)) for n in range(20)]
    found, pooled = distribution(values, names(20), HOUNSFIELD, 5), np.concatenate(values)
    assert found.suppressed == 400 and found.cells[-1][0] == 50
    assert found.percentile(50, HOUNSFIELD) == pytest.approx(float(np.median(pooled)), abs=1)
    normal = pooled.mean() + 2.5758 * pooled.std()
    assert found.percentile(99.5, HOUNSFIELD) == pytest.approx(normal, abs=0.1) and normal > 500
    few = [np.append(np.linspace(40.0, 59.9, 996), np.full(4, 300.0 + 100 * n)) for n in range(20)]
    assert distribution(few, names(20), HOUNSFIELD, 5).percentile(99.5, HOUNSFIELD) == pytest.approx(59.9, abs=0.2)
    withheld = found.model_copy(update={"total": None, "squares": None})
    assert withheld.is_known(50) and not withheld.is_known(99.5)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """18 scans of CT whose sizes, intensities and labels differ."""
    random, made, folder = np.random.default_rng(3), [], tmp_path_factory.mktemp("cases")
    for n in range(18):
        image = random.normal(40 + 3 * n, 20, (14, 12 + n % 2, 10))
        label = np.zeros(image.shape)
        label[3:9, 3:9, 3 : 6 + n % 3] = 1
        label[9:11, 3:9, 3:6] = 2
        made.append(write_case(folder, f"case{n}", image, label, (0.8 + 0.2 * (n % 2), 0.8, 3.0)))
    return made


def share(cases: list[Case], minimum_cell: int = 2, with_intensities: bool = True) -> SharedFingerprint:
    return fingerprint_to_share(cases, 2, minimum_cell, with_intensities)


def test_merged_is_pooled(cases: list[Case]) -> None:
    sites = [share(cases[:5]), share(cases[5:11]), share(cases[11:])]
    merged, pooled = merge(sites), share(cases)
    assert merged.cases == 18 and merged.missing_labels == ()
    compared = 0
    for (name, one, scale), (_, other, _) in zip(merged.parts(), pooled.parts(), strict=True):
        assert one.count == other.count, name
        if one.total is not None:
            compared += 1
            assert (one.total, one.squares) == (other.total, other.squares), name
        assert cells_apart(one, other, scale) <= 1, name
    assert compared == 7
    assert merged.spacing_mm == pooled.spacing_mm and merged.extent_mm[2] == pooled.extent_mm[2]


def test_the_plan_from_shared_sums_is_that_from_pooled_data(cases: list[Case]) -> None:
    merged = merge([share(cases[:9]), share(cases[9:])])
    one, other = (
        make_plan(found, ["CT"], {1: "a", 2: "b"}, "CT") for found in (merged, fingerprint_dataset(cases, (1, 2)))
    )
    assert one.preprocessing.spacing == pytest.approx((0.8, 0.8, 3.0))
    # The pooled median of 0.8 and 1.0 mm in equal numbers is 0.9, a voxel size that no scan has.
    assert other.preprocessing.spacing == pytest.approx((0.9, 0.8, 3.0))
    assert (one.patch_size[1:], one.model.kernels) == (other.patch_size[1:], other.model.kernels)
    (found,), (expected,) = one.preprocessing.intensity, other.preprocessing.intensity
    # Here every case weighs the same, there its small label counts less.
    assert found.mean == pytest.approx(expected.mean, abs=2) and found.std == pytest.approx(expected.std, abs=2)
    assert abs(found.lower - expected.lower) <= 15 and abs(found.upper - expected.upper) <= 15


def test_magnetic_resonance_shares_no_intensities(cases: list[Case]) -> None:
    found = share(cases, with_intensities=False)
    assert found.intensities_hu == ()
    with pytest.raises(ConfigError, match=r"preprocessing\.intensity: the fingerprints hold no intensities"):
        make_plan(found, ["CT"], {1: "a", 2: "b"}, "CT")


def test_no_number_of_a_single_case_is_in_it(cases: list[Case]) -> None:
    odd = share([*cases, replace(cases[0], name="again")], 5)
    text = odd.model_dump_json()
    assert "case" not in text.replace('"cases"', "") and str(cases[0].images[0].parent) not in text
    counts = [count for _, item, scale in odd.parts() if scale is not HOUNSFIELD for _, count in item.cells]
    assert counts and min(counts) >= 5


def test_volumes_of_labels_stay_where_they_are(tmp_path: Path) -> None:
    """Total and squares of (0, 0, 0, 0, v) would be v and v^2."""
    image = np.random.default_rng(0).normal(size=(8, 8, 8))

    def made(having: int, size: int) -> SharedFingerprint:
        cases = []
        for n in range(6):
            label = np.ones(image.shape)
            label[:size] = 2 if n < having else 1
            cases.append(write_case(tmp_path, f"v{having}{size}{n}", image, label))
        return fingerprint_to_share(cases, 2, 5, False)

    rare, common = made(1, 3), made(5, 3)
    assert rare.labels_found == (True, False) and common.labels_found == (True, True)
    assert rare == made(4, 5) == made(0, 1) and common == made(6, 2)
    assert merge([rare, common]).missing_labels == () and merge([rare, rare]).missing_labels == (2,)


@pytest.mark.parametrize(("lacking", "voxels"), [(0, 24_000), (1, 24_000), (4, 24_000), (5, 14_000), (8, 0)])
def test_no_number_of_voxels_tells_about_few_patients(tmp_path: Path, lacking: int, voxels: int) -> None:
    """Neither how many voxels a patient's labels have, nor that one of them has none."""
    cases = []
    for n in range(12):
        image = np.random.default_rng(n).normal(50, 5, (8, 8, 8))
        label = np.zeros(image.shape)
        label[: 1 + n % 3] = n >= lacking
        cases.append(write_case(tmp_path, f"w{n}", image, label))
    (found,) = fingerprint_to_share(cases, 1, 5, True).intensities_hu
    assert found.count == voxels
    if voxels:
        assert found.mean(HOUNSFIELD) == pytest.approx(50, abs=1) and found.std(HOUNSFIELD) == pytest.approx(5, abs=0.5)


def test_a_site_with_few_patients_shares_nothing(cases: list[Case]) -> None:
    with pytest.raises(ConfigError, match=r"4 patients with label maps are fewer than 5, so nothing may be shared"):
        share(cases[:4], 5)
    same = [replace(case, patient="one") for case in cases]
    with pytest.raises(ConfigError, match="1 patient with label maps"):
        share(same)


EMPTY: dict[str, Any] = {"count": 0, "suppressed": 0, "total": 0, "squares": 0, "cells": []}


def change(text: str, edit: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(text)
    edit(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c["spacing_mm"][0]["cells"][0].__setitem__(0, 0.8), "where no public cell begins"),
        (lambda c: c["spacing_mm"][0]["cells"][0].__setitem__(1, -9), "greater than or equal to"),
        (lambda c: c["spacing_mm"][0].update(suppressed=-1), "greater than or equal to"),
        (lambda c: c["spacing_mm"][0].update(suppressed=7), "are not 18"),
        (lambda c: c["spacing_mm"][0].update(count=19, suppressed=1), "spacing_mm along x: 1 values are suppressed"),
        (lambda c: c.update(cases=19), "counts 18 cases, and there are 19"),
        (lambda c: c.update(minimum_cell=10), "the cell at .* shows 9, fewer than 10"),
        (lambda c: c.update(minimum_cell=19), "18 cases are fewer than minimum_cell"),
        (lambda c: c.update(minimum_cell=1), "greater than or equal to 2"),
        (lambda c: c["spacing_mm"][0].update(total=float("nan")), "valid integer"),
        (lambda c: c["spacing_mm"][0].update(squares=float("inf")), "valid integer"),
        (lambda c: c["spacing_mm"][0].update(squares=1), "squares is too small for total"),
        (lambda c: c["spacing_mm"][0].update(total=100, squares=10**9), "total does not fit the cells"),
        (lambda c: c["spacing_mm"][0].update(squares=10**36), "squares does not fit the cells"),
        (lambda c: c["extent_mm"][2].update(squares=18 * 33_000**2), "squares does not fit the cells"),
        (lambda c: c["labels_found"].__setitem__(0, 523), "boolean"),
        (lambda c: c["intensities_hu"][0].update(count=c["intensities_hu"][0]["count"] - 1), "are not|voxels"),
        (lambda c: c["intensities_hu"][0].update(EMPTY | {"count": 2000, "suppressed": 2000}), "counts 2000 voxels"),
        (lambda c: c["spacing_mm"][0].update(total=None), "either both given or both withheld"),
        (lambda c: c["spacing_mm"][0]["cells"].reverse(), "ascending order"),
        (lambda c: c["spacing_mm"].pop(), "Field required|at least 3|length"),
        (lambda c: c.update(intensities_hu=c["intensities_hu"] * 2), "2 entries for 1 channel"),
        (lambda c: c["intensities_hu"][0].update(count=10**6, suppressed=10**6), "are not 1000000|voxels"),
        (lambda c: c.update(shapes=[[1, 2, 3]]), "Extra inputs"),
        (lambda c: c["extent_mm"][0].update(largest=44.0), "Extra inputs"),
    ],
)
def test_what_contradicts_itself_is_refused(cases: list[Case], edit: Any, problem: str) -> None:
    text = share(cases).model_dump_json()
    assert SharedFingerprint.model_validate_json(text) == share(cases)
    with pytest.raises(ValidationError, match=problem):
        SharedFingerprint.model_validate_json(change(text, edit))


def test_what_cannot_be_added_or_known_is_refused(cases: list[Case], tmp_path: Path) -> None:
    two = [share(cases[:9]), share(cases[9:], with_intensities=False)]
    with pytest.raises(ConfigError, match="intensities_hu: the sites' fingerprints have different numbers"):
        merge(two)
    image = np.random.default_rng(0).normal(size=(8, 8, 8))
    odd = [write_case(tmp_path, f"odd{n}", image, np.ones(image.shape), (1.0 + (n == 5), 1.0, 1.0)) for n in range(6)]
    found = fingerprint_to_share(odd, 1, 5, False)
    assert found.spacing_mm[0].total is None
    with pytest.raises(ConfigError, match=r"preprocessing\.spacing: cannot be chosen: too many of the cases"):
        found.spacing_percentile(50)
    huge = found.model_copy(update={"cases": 10**9})
    with pytest.raises(ConfigError, match=r"the sum of all sites' fingerprints: .*no site can have so many cases"):
        merge([huge, found])
    deep = [write_case(tmp_path, f"deep{n}", np.stack([image] * 65, axis=3), np.ones(image.shape)) for n in range(2)]
    with pytest.raises(DataError, match="has 65 channels, and a fingerprint is of at most 64"):
        fingerprint_to_share(deep, 1, 2, False)
    alone = [write_case(tmp_path, "blank", image, np.zeros(image.shape))] * 2
    with pytest.raises(DataError, match="no case has any voxel"):
        fingerprint_to_share([replace(case, name=str(n)) for n, case in enumerate(alone)], 1, 2, False)


def test_three_real_sites_share_what_makes_the_plan_of_all_their_data(hippocampus: Path) -> None:
    dataset = find_dataset(hippocampus)
    with (hippocampus / "acquisition_groups.csv").open() as stream:
        rows = list(csv.reader(stream))
    group = {row[0]: row[1] for row in rows[1:]}
    chosen = dataset.cases[::3]
    sites = {name: [case for case in chosen if group[case.name] == name] for name in sorted(set(group.values()))}
    assert len(sites) == 3 and sum(map(len, sites.values())) == len(chosen)
    merged = merge([fingerprint_to_share(cases, 2, 5, False) for cases in sites.values()])
    plan = make_plan(merged, dataset.channels, dataset.labels)
    assert plan == make_plan(fingerprint_dataset(chosen, dataset.labels), dataset.channels, dataset.labels)
    assert plan.patch_size == (40, 56, 40)
