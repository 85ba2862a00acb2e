"""What a dataset declares against what a federation wants: every kind of difference, and maps by name."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.case import Case, load_case
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import Dataset, find_dataset
from common.plan.plan import IntensityPlan, PreprocessingPlan

SHAPE = (5, 6, 7)


def dataset(labels: dict[int, str], channels: tuple[str, ...] = ("MRI",), cases: tuple[Case, ...] = ()) -> Dataset:
    return Dataset(Path("data"), "decathlon", cases, channels, labels)


def found(
    declared: Dataset, wanted: Wanted, labels_map: dict[str, str] | None = None, channels_map: dict | None = None
) -> list[tuple[str, str]]:
    _, problems = compare(declared, wanted, SiteTerms(labels_map=labels_map or {}, channels_map=channels_map or {}))
    return [(problem.severity, problem.text) for problem in problems]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({1: "anterior", 2: "posterior"}, {1: "anterior", 2: "posterior"}),
        ({1: "Left_Lung", 2: "right-lung"}, {1: "left lung", 2: "Right Lung"}),
        ({1: "label 1", 2: "2"}, {1: "anterior", 2: "posterior"}),
        ({1: "anterior hippocampus"}, {1: "anterior"}),
        ({}, {1: "anterior"}),
        ({1: "anterior"}, {1: "anterior", 2: "posterior"}),
    ],
)
def test_labels_that_may_mean_the_same_are_no_error(here, there) -> None:
    assert "error" not in {severity for severity, _ in found(dataset(here), Wanted(there))}


@pytest.mark.parametrize(
    ("here", "there", "text"),
    [
        (
            {1: "a", 2: "b"},
            {1: "b", 2: "a"},
            "label 1 is 'a' here, and 'b' in the federation, where 'a' has the value 2",
        ),
        (
            {1: "left kidney"},
            {1: "Right_Kidney"},
            "label 1 is 'left kidney' here, and 'Right_Kidney'",
        ),
        ({1: "tumour", 2: "organ"}, {1: "organ"}, "label 1 is 'tumour' here"),
        ({3: "a"}, {1: "a"}, "label 3 is 'a' here, and 'nothing' in the federation, where 'a' has the value 1"),
        ({1: "left kidney", 2: "right kidney"}, {1: "right kidney", 2: "left kidney"}, "label 1 is 'left kidney'"),
    ],
)
def test_labels_of_another_meaning_are_refused(here, there, text) -> None:
    problems = found(dataset(here), Wanted(there))
    assert problems[0][0] == "error"
    assert text in problems[0][1] and "labels_map in site.yaml" in problems[0][1]


def test_other_names_are_a_warning() -> None:
    [problem] = found(dataset({1: "liver"}), Wanted({1: "tumour"}))
    assert problem[0] == "warning" and "label 1 is 'liver' here, and 'tumour' in the federation" in problem[1]


def test_a_label_that_is_not_wanted_is_a_warning() -> None:
    [problem] = found(dataset({1: "liver", 2: "vessel"}), Wanted({1: "liver"}))
    assert problem[0] == "warning" and "label 2 (vessel) is not in the federation" in problem[1]


@pytest.mark.parametrize(
    ("labels_map", "text"),
    [
        ({"a": "a", "b": "b"}, None),
        ({"a": "b", "b": "a"}, None),
        ({"a": "b"}, "label 2 is 'b' here"),
        ({"a": "a"}, "gives label 1 the value 2, which another label has"),
        ({"a": "liver", "b": "b"}, "leads to 'liver', and the federation has b, a, background"),
        ({"spleen": "b"}, "names 'spleen', and the dataset declares a, b"),
    ],
)
def test_labels_are_mapped_by_name(labels_map, text) -> None:
    problems = found(dataset({1: "a", 2: "b"}), Wanted({1: "b", 2: "a"}), labels_map)
    if text is None:
        assert problems == []
    else:
        assert any(severity == "error" and text in problem for severity, problem in problems)


@pytest.mark.parametrize(
    ("here", "there"),
    [(("MRI",), ("T1",)), (("synthetic",), ("t1",)), (("T1w", "FLAIR"), ("t1", "flair")), (("channel_0",), ("CT",))],
)
def test_channels_that_may_be_the_same_are_no_error(here, there) -> None:
    assert "error" not in {severity for severity, _ in found(dataset({}, here), Wanted(channels=there))}


@pytest.mark.parametrize(
    ("here", "there", "text"),
    [
        (("T1", "T2"), ("T2", "T1"), "channel 0 is 'T1' here, and 'T2' in the federation"),
        (("T1",), ("FLAIR",), "channel 0 is 'T1' here"),
        (("T1c",), ("T1",), "channel 0 is 'T1c' here"),
        (("CT",), ("T1",), "channel 0 is 'CT' here"),
        (("T1", "T2"), ("T1",), "2 channels here (T1, T2), 1 in the federation (T1)"),
        (("T1",), ("T1", "T2"), "1 channel here"),
    ],
)
def test_channels_of_another_meaning_are_refused(here, there, text) -> None:
    problems = found(dataset({}, here), Wanted(channels=there))
    assert problems[0][0] == "error"
    assert text in problems[0][1] and "channels_map in site.yaml" in problems[0][1]


@pytest.mark.parametrize(
    ("channels", "modality", "severity"),
    [
        (("MRI",), "CT", "error"),
        (("FLAIR", "T1w"), "CT", "error"),
        (("CT",), "MR", "warning"),
        (("CT",), "CT", None),
        (("MRI",), "MR", None),
        (("CT",), "other", None),
        (("channel_0",), "CT", None),
    ],
)
def test_the_modality_is_compared(channels, modality, severity) -> None:
    problems = found(dataset({}, channels), Wanted(modality=modality))
    assert [level for level, _ in problems] == ([severity] if severity else [])


def test_a_model_may_ask_for_anything() -> None:
    assert found(dataset({1: "a"}, ("CT", "PET")), Wanted()) == []


@pytest.mark.parametrize("layout", ["4D", "files"])
def test_what_is_mapped_is_read_that_way_and_cached_apart(tmp_path: Path, layout: str) -> None:
    random = np.random.default_rng(0)
    images, label = random.uniform(1, 9, (2, *SHAPE)).astype(np.float32), random.integers(0, 4, SHAPE).astype(np.uint8)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text(
        '{"modality": {"0": "T1", "1": "T2"}, "labels": {"1": "a", "2": "b", "3": "vessel"}}'
    )
    if layout == "4D":
        nibabel.Nifti1Image(np.moveaxis(images, 0, -1), np.eye(4)).to_filename(tmp_path / "imagesTr/x.nii")
    else:
        for channel, image in enumerate(images):
            nibabel.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / f"imagesTr/x_{channel:04d}.nii")
    nibabel.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / "labelsTr/x.nii")
    wanted = Wanted({1: "b", 2: "a"}, ("T2", "T1"))
    terms = SiteTerms(labels_map={"a": "a", "b": "b", "vessel": "background"}, channels_map={"T1": "T1", "T2": "T2"})
    mapped, problems = compare(find_dataset(tmp_path), wanted, terms)
    assert problems == []
    assert (mapped.channels, mapped.labels) == (("T2", "T1"), {2: "a", 1: "b"})
    volume, found_label = load_case(mapped.cases[0], {1, 2}, channels=2)
    np.testing.assert_array_equal(volume.array, images[::-1])
    np.testing.assert_array_equal(found_label, np.array([0, 2, 1, 0])[label])
    cache = CaseCache(tmp_path / "cache", PreprocessingPlan(intensity=(IntensityPlan(),) * 2), [1, 2, 3])
    plain, changed = cache.get(find_dataset(tmp_path).cases[0]), cache.get(mapped.cases[0])
    np.testing.assert_array_equal(changed.image, plain.image[::-1])
    np.testing.assert_array_equal(changed.label, np.array([0, 2, 1, 0])[plain.label])
