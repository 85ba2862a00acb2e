from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.data.dataset_check import check_dataset
from common.errors import DataError
from common.imaging.datasets.comparison import SiteTerms, Wanted
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.imaging.ranges import GeometryRanges

SHAPE = (6, 7, 8)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array.astype(np.float32), np.diag([2.0, 2, 2, 1]) if affine is None else affine).to_filename(
        path
    )
    return path


def scan(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, SHAPE)


def truth(*values: int) -> np.ndarray:
    label = np.zeros(SHAPE)
    for value in values:
        label[value] = value
    return label


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Three good cases, labels 1 (left) and 2 (right) declared, no empty label."""
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"1": "left", "2": "right"}, "modality": {"0": "MRI"}})
    )
    for seed, name in enumerate("abc"):
        save(tmp_path / f"images/{name}.nii.gz", scan(seed))
        save(tmp_path / f"labels/{name}.nii.gz", truth(1, 2))
    return tmp_path


def messages(report) -> list[tuple[str, str | None, str]]:
    return [(problem.severity, problem.case, problem.path.name) for problem in report.problems]


def test_a_good_dataset(dataset) -> None:
    steps = []
    report = check_dataset(dataset, progress=lambda done, total: steps.append((done, total)))
    assert report.usable
    assert report.problems == ()
    assert steps == [(1, 3), (2, 3), (3, 3)]
    case = report.cases[0]
    assert (case.name, case.shape, case.spacing, case.orientation) == ("a", SHAPE, (2.0, 2.0, 2.0), "RAS")
    assert case.label_ml == pytest.approx({1: 56 * 8 / 1000, 2: 56 * 8 / 1000})
    assert case.intensity[0] == pytest.approx((scan(0).min(), scan(0).max()))
    text = report.to_text()
    assert text.splitlines()[0].split() == [
        "case",
        "shape",
        "spacing",
        "mm",
        "axes",
        "intensity",
        "left",
        "ml",
        "right",
        "ml",
    ]
    for part in ("6 x 7 x 8", "2 x 2 x 2", "RAS in 3", "0.448", "3, usable 3", "Usable."):
        assert part in text


def test_collects_every_problem_in_one_pass(dataset) -> None:
    for seed, name in enumerate("defghijkl", start=10):
        save(dataset / f"images/{name}.nii.gz", scan(seed))
        save(dataset / f"labels/{name}.nii.gz", truth(1, 2))
    whole = (dataset / "images/d.nii.gz").read_bytes()
    (dataset / "images/d.nii.gz").write_bytes(whole[: len(whole) // 2])
    (dataset / "labels/e.nii.gz").write_text("not an image")
    bad = scan(20)
    bad[0, 0, 0] = np.nan
    save(dataset / "images/f.nii.gz", bad)
    save(dataset / "labels/f.nii.gz", truth(1, 3))  # and a second problem in the same case
    save(dataset / "images/g.nii.gz", np.ones(SHAPE))
    save(dataset / "labels/h.nii.gz", truth(1)[:-1])
    save(dataset / "labels/i.nii.gz", truth(1, 2), np.diag([2.0, 2, 2.1, 1]))
    (dataset / "labels/j.nii.gz").unlink()
    save(dataset / "images/k.nii", scan(30))
    save(dataset / "images/l.nii.gz", np.stack([scan(31), scan(32)], axis=-1))
    save(dataset / "labels/d.nii.gz", truth(1, 4))  # still judged although the image is not readable
    report = check_dataset(dataset)
    assert not report.usable
    assert sorted(messages(report)) == [
        ("error", "d", "d.nii.gz"),
        ("error", "d", "d.nii.gz"),
        ("error", "e", "e.nii.gz"),
        ("error", "f", "f.nii.gz"),
        ("error", "f", "f.nii.gz"),
        ("error", "g", "g.nii.gz"),
        ("error", "h", "h.nii.gz"),
        ("error", "i", "i.nii.gz"),
        ("error", "j", "j.nii.gz"),
        ("error", "k", "k.nii.gz"),
        ("error", "l", "l.nii.gz"),
    ]
    assert [case.name for case in report.cases if case.usable] == ["a", "b", "c"]
    assert len(report.cases) == 12
    text = report.to_text()
    for problem in report.problems:
        assert f"error: {problem.path}: {problem.text}" in text
    assert "NOT USABLE: 11 errors" in text
    content = json.loads(report.to_json())
    assert content["usable"] is False
    assert len(content["problems"]) == 11
    assert content["cases"][5]["intensity"] == [[None, None]]


def test_a_broken_channel_file_is_named(tmp_path) -> None:
    for channel in range(3):
        save(tmp_path / f"imagesTr/a_{channel:04d}.nii.gz", scan(channel))
    save(tmp_path / "labelsTr/a.nii.gz", truth(1))
    for channel in (1, 2):
        (tmp_path / f"imagesTr/a_{channel:04d}.nii.gz").write_bytes(b"\x1f\x8b broken")
    assert messages(check_dataset(tmp_path)) == [("error", "a", "a_0001.nii.gz"), ("error", "a", "a_0002.nii.gz")]


def test_the_federations_labels_come_before_the_datasets_own(dataset) -> None:
    assert check_dataset(dataset, Wanted({1: "organ", 2: "tumour"})).labels == {1: "organ", 2: "tumour"}
    report = check_dataset(dataset, Wanted({1: "left"}))
    assert not report.usable
    assert [problem.case for problem in report.problems] == [None, "a", "b", "c"]


def test_warns_about_a_label_that_no_case_has(dataset) -> None:
    report = check_dataset(dataset, Wanted({1: "left", 2: "right", 3: "vessel"}))
    assert report.usable
    assert messages(report) == [("warning", None, dataset.name)]
    assert "label 3 (vessel) is declared, but no case has it" in report.to_text()
    assert report.cases[0].empty_labels == [3]


def test_warns_about_empty_label_maps_copies_and_undeclared_sides(dataset) -> None:
    save(dataset / "labels/a.nii.gz", truth())
    save(dataset / "images/b.nii.gz", scan(2))
    image = nibabel.Nifti1Image(scan(2).astype(np.float32), None)
    image.header.set_zooms((2.0, 2.0, 2.0))
    image.to_filename(dataset / "images/c.nii.gz")
    save(dataset / "labels/c.nii.gz", truth(1, 2), image.header.get_best_affine())
    report = check_dataset(dataset)
    assert report.usable
    assert [(problem.case, problem.text.split(":")[0][:30]) for problem in report.problems] == [
        ("a", "is empty"),
        ("c", "does not say which side is lef"),
    ]
    save(dataset / "images/a.nii.gz", scan(2))
    assert "has the same voxels as case a" in check_dataset(dataset).to_text()


def test_without_declared_labels_it_reports_those_found(dataset) -> None:
    (dataset / "dataset.json").unlink()
    report = check_dataset(dataset)
    assert report.labels == {1: "label 1", 2: "label 2"}
    assert report.usable


def test_images_without_labels_are_good_for_prediction_only(tmp_path) -> None:
    save(tmp_path / "a.nii.gz", scan(0))
    assert [problem.severity for problem in check_dataset(tmp_path).problems] == ["warning"]
    assert not check_dataset(tmp_path, Wanted({1: "organ"})).usable


def test_nothing_to_check_is_an_error(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no cases"):
        check_dataset(tmp_path)


def test_a_dataset_of_broken_cases_only_is_reported(tmp_path) -> None:
    save(tmp_path / "images/a.nii.gz", scan(0))
    report = check_dataset(tmp_path)
    assert not report.usable
    assert "NOT USABLE" in report.to_text()
    json.loads(report.to_json())


def test_names_files_that_are_no_files_and_names_that_are_no_text(dataset) -> None:
    os.mkfifo(dataset / "images/d.nii.gz")
    os.mkfifo(dataset / "labels/a.nii")
    save(dataset / "labels/d.nii.gz", truth(1, 2))
    (dataset / "images/e.nii.gz").symlink_to(dataset / "gone")
    (dataset / "images/c.nii.gz").rename(os.fsdecode(os.fsencode(dataset) + b"/images/c\xff.nii.gz"))
    (dataset / "labels/c.nii.gz").unlink()
    report = check_dataset(dataset)
    assert [case.name for case in report.cases if case.usable] == ["b"]
    text = report.to_text()
    text.encode("utf-8")
    assert r"images/c\xff.nii.gz: its name is not UTF-8: rename it" in text
    for name in ("images/d.nii.gz", "images/e.nii.gz", "labels/a.nii"):
        assert f"error: {dataset / name}: is not a regular file" in text


def test_names_geometry_that_cannot_be_true(dataset) -> None:
    metres = np.diag([1000.0, 1500, 2000, 1])
    save(dataset / "images/b.nii.gz", scan(1), metres)
    save(dataset / "labels/b.nii.gz", truth(1, 2), metres)
    padded = scan(2)
    padded[0] = -2000
    save(dataset / "images/c.nii.gz", padded)
    report = check_dataset(dataset)
    assert messages(report) == [("error", "b", "b.nii.gz"), ("warning", "c", "c.nii.gz")]
    assert "has voxels of 1000 x 1500 x 2000 mm" in report.problems[0].text
    assert "padding value -2000" in report.problems[1].text
    wide = SiteTerms(GeometryRanges(voxel_mm=(0.05, 5000), extent_mm=20_000))
    assert check_dataset(dataset, terms=wide).usable


@pytest.mark.parametrize("odd", ["a", "c"])
def test_the_odd_case_is_named_wherever_it_stands(dataset, odd) -> None:
    (dataset / "dataset.json").unlink()
    save(dataset / f"images/{odd}.nii.gz", np.stack([scan(9)] * 4, axis=-1))
    assert messages(check_dataset(dataset)) == [("error", odd, f"{odd}.nii.gz")]


def test_phantoms_pass(tmp_path) -> None:
    report = check_dataset(write_phantom_dataset(tmp_path / "data", (1, 1, 1, 1), seed=0))
    assert report.usable
    assert report.problems == ()


def test_the_real_dataset_passes(hippocampus) -> None:
    report = check_dataset(hippocampus)
    assert report.usable, report.problems
    assert len(report.cases) == 220
    assert report.cases[0].label_ml == pytest.approx({1: 1.324, 2: 1.624})
    assert all(not case.empty_labels for case in report.cases)
