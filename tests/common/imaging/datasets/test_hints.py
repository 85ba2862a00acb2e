"""A folder that is almost a dataset: the error says what is the matter with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from common.imaging.datasets.dataset import find_dataset, scan_dataset
from tests.common.imaging.datasets.test_dataset import make

NNUNET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumour": 1}}


def listed(**entries: Any) -> dict[str, Any]:
    return NNUNET | {
        "dataset": {name: dict(zip(("images", "label"), entry, strict=True)) for name, entry in entries.items()}
    }


@pytest.mark.parametrize(
    ("folders", "content", "hint"),
    [
        ({"imagesTs": ["a.nii"]}, None, "give that folder to fedvox-client predict"),
        ({"ImagesTr": ["a.nii"], "labelsTr": ["a.nii"]}, None, "ImagesTr/ must be written imagesTr/: rename it"),
        ({"IMAGES": ["a.nii"], "LABELS": ["a.nii"]}, None, "IMAGES/ must be written images/"),
        (
            {"imagesTr": ["a.nii"], "LabelsTr": ["a.nii"]},
            None,
            "labelsTr: does not exist, but LabelsTr does: rename that",
        ),
        ({"Task04/imagesTr": ["a.nii"]}, None, "The folder Task04 inside looks like a dataset"),
        (
            {"scans": ["a_0000.nii"], "truth": ["a.nii"]},
            listed(a=(["scans/a_0000.nii"], "truth/a.nii")),
            "dataset.json lists files elsewhere, such as scans/a_0000.nii: put them",
        ),
        ({"x": []}, NNUNET | {"dataset": {}}, 'dataset must be written as in {"case":'),
        ({"x": []}, NNUNET | {"dataset": {"a": {"label": "a.nii"}}}, "dataset names no images for 'a'"),
        ({"x": []}, NNUNET | {"dataset": {"a": {"images": ["a.nii"], "label": 1}}}, "a label for 'a' that is no path"),
    ],
)
def test_the_hint_that_helps(tmp_path: Path, folders: dict[str, list[str]], content: Any, hint: str) -> None:
    with pytest.raises(DataError, match=re.escape(hint)):
        find_dataset(make(tmp_path, folders, content))


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["a.mha", "b.mha"], "It has 2 .mha files: convert them to .nii.gz"),
        (["a.nrrd"], "It has 1 .nrrd file: convert"),
        (["a.hdr", "a.img"], "a.hdr: is half of a two-file NIfTI (.hdr and .img) and is ignored: convert it"),
        (["a.HDR", "b.img.gz"], "is half of a two-file NIfTI"),
        (["readme.txt"], "or NIfTI files (.nii, .nii.gz) directly inside"),
    ],
)
def test_files_of_other_formats_are_named(tmp_path: Path, names: list[str], hint: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=re.escape(hint)):
        find_dataset(tmp_path)


def test_a_pair_among_scans_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Passed over in silence, it would look as if it had been segmented."""
    make(tmp_path, {"scans": ["good.nii"]})
    for suffix in ("hdr", "img"):
        (tmp_path / "scans" / f"bad.{suffix}").write_bytes(b"x")
    dataset, problems = scan_dataset(tmp_path / "scans")
    assert [case.name for case in dataset.cases] == ["good"]
    assert [(problem.path.name, problem.severity) for problem in problems] == [
        ("bad.hdr", "error"),
        ("bad.img", "error"),
    ]


@pytest.mark.parametrize(
    ("label", "text"),
    [("labelsTr/a.nii", None), ("other/a.nii", "names the label other/a.nii of a, and labelsTr/ is read")],
)
def test_what_nnunet_lists_by_case_is_compared(tmp_path: Path, label: str, text: str | None) -> None:
    content = listed(a=(["imagesTr\\a_0000.nii"], label))
    root = make(tmp_path, {"imagesTr": ["a_0000.nii", "b_0000.nii"], "labelsTr": ["a.nii", "b.nii"]}, content)
    dataset, problems = scan_dataset(root)
    assert [case.name for case in dataset.cases] == ["a"]
    texts = [problem.text for problem in problems]
    assert "is not in the training list of dataset.json and is ignored" in texts
    assert any(text in found for found in texts) if text else len(texts) == 1


def test_the_suffix_that_is_declared_is_compared(tmp_path: Path) -> None:
    files = {"imagesTr": ["a_0000.nii", "b_0000.nii.gz"], "labelsTr": ["a.nii.gz", "b.nii.gz"]}
    for ending, expected in ((".nii.gz", ["1 file of 4"]), (".nii", ["3 files of 4"]), (None, [])):
        root = make(tmp_path, files, NNUNET | ({"file_ending": ending} if ending else {}))
        _, problems = scan_dataset(root)
        assert [problem.severity for problem in problems] == ["warning"] * len(expected)
        for problem, text in zip(problems, expected, strict=True):
            assert problem.text.startswith(f"file_ending is {ending!r}, and {text} end")
