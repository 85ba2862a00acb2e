"""BIDS folders as datasets: which scans, which channels, whose, and with which label maps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.case import load_case
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import Dataset, find_dataset, scan_dataset
from tests.bids import validate, write_dataset, write_derivative, write_label, write_scan, write_text

LABELS = {1: "anterior", 2: "posterior"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two subjects, one with two sessions; three channels; segmentations by hand."""
    root = write_dataset(tmp_path / "study")
    labels = write_derivative(root)
    for seed, case in enumerate(("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1")):
        for suffix in ("T1w", "T2w", "FLAIR"):
            write_scan(root, f"{case}_{suffix}", seed)
        write_label(labels, f"{case}_dseg")
    return root


def texts(root: Path, rules: BidsRules | None = None) -> list[tuple[str, str]]:
    """Severity and text of every problem."""
    return [(one.severity, one.text) for one in scan_dataset(root, bids=rules or BidsRules())[1]]


def images(dataset: Dataset) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.images] for case in dataset.cases}


def test_what_these_tests_make_is_bids(study: Path) -> None:
    assert validate(study) == []
    (study / "derivatives" / "manual" / "dataset_description.json").unlink()
    write_scan(study, "sub-01_ses-1_T7w")
    assert validate(study) != []


def test_sessions_are_cases_of_their_subject(study: Path) -> None:
    dataset = find_dataset(study)
    assert dataset.layout == "bids" and dataset.has_labels
    assert [(case.name, case.owner) for case in dataset.cases] == [
        ("sub-01_ses-1", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-02_ses-1", "sub-02"),
    ]
    assert dataset.labels == LABELS
    assert dataset.channels == ("FLAIR", "T1w", "T2w")


def test_cases_are_those_of_the_same_files_in_plain_folders(study: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for case in ("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"):
        folder = Path(*case.split("_"), "anat")
        for kind, source in (
            ("images", study / folder / f"{case}_T1w.nii.gz"),
            ("labels", study / "derivatives" / "manual" / folder / f"{case}_dseg.nii.gz"),
        ):
            (plain / kind).mkdir(parents=True, exist_ok=True)
            (plain / kind / f"{case}.nii.gz").symlink_to(source)
    ours, problems = compare(find_dataset(study), Wanted(LABELS, ("T1w",)))
    assert not problems
    for one, other in zip(ours.cases, find_dataset(plain).cases, strict=True):
        assert one.name == other.name
        (volume, label), (expected, expected_label) = load_case(one, {1, 2}), load_case(other, {1, 2})
        np.testing.assert_array_equal(volume.array, expected.array)
        np.testing.assert_array_equal(label, expected_label)


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        (("T1w",), {}, ["T1w"]),
        (("T2w", "T1w"), {}, ["T2w", "T1w"]),
        (("flair", "t1W", "T2w"), {}, ["FLAIR", "T1w", "T2w"]),
        (("T1",), {"T1w": "T1"}, ["T1w"]),
        (("MRI",), {"FLAIR": "MRI"}, ["FLAIR"]),
        (("post", "T2w"), {"T1w": "post"}, ["T1w", "T2w"]),
    ],
)
def test_suffixes_are_the_channels_that_the_federation_names(
    study: Path, wanted: tuple[str, ...], given: dict[str, str], expected: list[str]
) -> None:
    dataset, problems = compare(find_dataset(study), Wanted(LABELS, wanted), SiteTerms(channels_map=given))
    assert not problems
    assert images(dataset)["sub-02_ses-1"] == [f"sub-02_ses-1_{suffix}.nii.gz" for suffix in expected]
    assert dataset.channels == (wanted if given else tuple(expected))


def test_a_channel_that_nothing_names_is_asked_for(study: Path) -> None:
    for wanted, advice in ((("MRI",), "{FLAIR: MRI}"), (("FLAIR", "t1"), "{T1w: t1}")):
        _, (problem,) = compare(find_dataset(study), Wanted(LABELS, wanted))
        assert problem.severity == "error"
        assert problem.text == (
            f"holds FLAIR, T1w, T2w, and {', '.join(wanted)} is wanted: say which is which by channels_map in "
            f"site.yaml, such as {advice}"
        )


def test_a_scan_without_one_of_the_channels_is_an_error(study: Path) -> None:
    (study / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T2w.nii.gz").unlink()
    dataset, problems = compare(find_dataset(study), Wanted(LABELS, ("T1w", "T2w")))
    assert list(images(dataset)) == ["sub-01_ses-1", "sub-02_ses-1"]
    assert [(one.case, one.text) for one in problems] == [("sub-01_ses-2", "has no T2w image")]
    _, problems = compare(find_dataset(study), Wanted(LABELS, ("T1w",)))
    assert not problems


def test_contrast_agents_are_channels_of_their_own(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    for name in ("T1w", "ce-gadolinium_T1w", "T2w"):
        write_scan(root, f"sub-01_{name}")
    write_label(write_derivative(root), "sub-01_space-T1w_dseg")
    assert validate(root) == []
    terms = SiteTerms(channels_map={"ce-gadolinium_T1w": "T1 post", "T2w": "T2"})
    dataset, problems = compare(find_dataset(root), Wanted(LABELS, ("T1 post", "T2")), terms)
    assert not problems
    assert images(dataset) == {"sub-01": ["sub-01_ce-gadolinium_T1w.nii.gz", "sub-01_T2w.nii.gz"]}


def test_a_label_map_of_a_scan_after_contrast_is_none_of_the_plain_scan(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    for name in ("T1w", "ce-gadolinium_T1w"):
        write_scan(root, f"sub-01_{name}")
    write_label(write_derivative(root), "sub-01_ce-gadolinium_dseg")
    dataset, (problem,) = compare(find_dataset(root), Wanted(LABELS, ("T1w",)))
    assert (dataset.cases, problem.case, problem.severity, problem.path.name) == (
        *((), "sub-01", "error"),
        "sub-01_ce-gadolinium_dseg.nii.gz",
    )
    assert problem.text == (
        "is a label map of the scan with ce-gadolinium, and the channels T1w have none of it: make that scan a channel "
        "(channels_map), or choose other label maps (bids.labels) in site.yaml"
    )
    for channels in (("ce-gadolinium_T1w",), ("T1w", "ce-gadolinium_T1w")):
        dataset, problems = compare(find_dataset(root), Wanted(LABELS, channels))
        assert not problems and [len(case.images) for case in dataset.cases] == [len(channels)]


def test_a_label_map_of_one_hemisphere_is_one_only_where_the_hospital_says_so(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    write_scan(root, "sub-01_T1w")
    write_label(write_derivative(root), "sub-01_hemi-L_dseg")
    assert (
        "error",
        "covers one hemisphere: join it with the other one, or, if this one is meant, choose in site.yaml, "
        "such as bids: {labels: '*_hemi-L_dseg'}",
    ) in texts(root)
    assert not scan_dataset(root)[0].has_labels
    (case,) = find_dataset(root, bids=BidsRules(labels="*_hemi-L_dseg")).cases
    assert case.label is not None


def test_a_label_map_without_a_session_belongs_to_no_session(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    write_scan(root, "sub-01_ses-2_T1w")
    labels = write_derivative(root)
    write_label(labels, "sub-01_dseg")
    assert ("error", "belongs to no scan, or to several: its entities say not which") in texts(root)
    write_scan(root, "sub-01_T1w")
    assert [case.name for case in find_dataset(root).cases] == ["sub-01"]


def test_runs_are_cases_and_their_label_maps_keep_their_entities(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    labels = write_derivative(root)
    for run in ("1", "2"):
        write_scan(root, f"sub-01_run-{run}_T1w")
    write_label(labels, "sub-01_run-2_desc-expert_dseg")
    assert validate(root) == []
    dataset, problems = scan_dataset(root)
    assert images(dataset) == {"sub-01_run-2": ["sub-01_run-2_T1w.nii.gz"]}
    assert [(one.case, one.severity, one.text) for one in problems] == [
        ("sub-01_run-1", "warning", "has no label map and is left out")
    ]
    write_label(labels, "sub-01_desc-expert_dseg")
    assert ("error", "belongs to no scan, or to several: its entities say not which") in texts(root)


def test_masks_of_one_structure_are_label_maps_too(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    labels = write_derivative(root, table="")
    write_scan(root, "sub-01_T1w")
    write_label(labels, "sub-01_label-hippocampus_mask", highest=1)
    write_label(labels, "sub-01_desc-brain_mask", highest=1)
    assert validate(root) == []
    dataset = find_dataset(root)
    assert dataset.labels == {1: "hippocampus"}
    assert [case.label and case.label.name for case in dataset.cases] == ["sub-01_label-hippocampus_mask.nii.gz"]
    assert find_dataset(root, bids=BidsRules(labels="*_desc-brain_mask")).labels == {}


def test_masks_of_several_structures_are_not_one_label(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    labels = write_derivative(root, table="")
    for subject, structure in (("01", "liver"), ("02", "spleen")):
        write_scan(root, f"sub-{subject}_T1w")
        write_label(labels, f"sub-{subject}_label-{structure}_mask", highest=1)
    dataset, problems = scan_dataset(root)
    assert not dataset.has_labels and all(case.label is None for case in dataset.cases)
    assert [(one.case, one.path and one.path.name, one.severity, one.text) for one in problems] == [
        (
            *(None, "sub-02_label-spleen_mask.nii.gz", "error"),
            "is of another kind than sub-01_label-liver_mask.nii.gz by its name: choose in site.yaml, such as "
            "bids: {labels: '*_label-liver_mask'}",
        )
    ]
    assert ("error", problems[0].text) in texts(root, BidsRules(labels="*_mask"))
    dataset = find_dataset(root, bids=BidsRules(labels="*_label-spleen_mask"))
    assert (dataset.labels, list(images(dataset))) == ({1: "spleen"}, ["sub-02"])


def test_where_several_folders_or_maps_could_be_meant_the_hospital_chooses(study: Path) -> None:
    other = write_derivative(study, "automatic")
    write_label(other, "sub-01_ses-1_desc-v1_dseg")
    write_label(other, "sub-01_ses-1_desc-v2_dseg")
    write_label(other, "sub-01_ses-1_space-MNI152NLin2009cAsym_dseg")
    (error,) = [text for severity, text in texts(study) if severity == "error"]
    assert error == (
        "automatic and manual both hold label maps: choose in site.yaml, such as bids: {derivatives: automatic}"
    )
    assert [case.name for case in find_dataset(study, bids=BidsRules(derivatives="manual")).cases] == [
        *("sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"),
    ]
    (error,) = [text for severity, text in texts(study, BidsRules(derivatives="automatic")) if severity == "error"]
    assert error == (
        "is a label map of sub-01_ses-1, and so is sub-01_ses-1_desc-v1_dseg.nii.gz: choose in site.yaml, such as "
        "bids: {labels: '*_desc-v2_dseg'}"
    )
    (case,) = find_dataset(study, bids=BidsRules(labels="*_desc-v2_dseg")).cases
    assert case.label is not None and case.label.name == "sub-01_ses-1_desc-v2_dseg.nii.gz"


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (BidsRules(derivatives="nowhere"), "does not exist: correct bids.derivatives in site.yaml"),
        (BidsRules(labels="*_nothing"), "has no label map of the name *_nothing"),
    ],
)
def test_choices_that_fit_nothing_are_errors(study: Path, rules: BidsRules, text: str) -> None:
    assert ("error", text) in texts(study, rules)
    with pytest.raises(DataError, match=re.escape(text)):
        find_dataset(study, bids=rules)


def test_scans_without_any_label_map_are_there_to_be_segmented(study: Path) -> None:
    dataset, problems = scan_dataset(study, labelled=False)
    assert (dataset.layout, dataset.has_labels, len(dataset.cases), problems) == ("bids_images", False, 3, [])
    (study / "derivatives").rename(study / "elsewhere")
    assert scan_dataset(study)[0].layout == "bids_images"


def test_the_table_of_participants_is_compared_with_the_folders(study: Path) -> None:
    table = study / "participants.tsv"
    write_text(table, "participant_id\tage\nsub-01\t30\nsub-09\t31\n")
    assert texts(study) == [
        ("error", "has no row for 1 subject with a folder, such as sub-02: add them"),
        ("warning", "has rows for 1 subject without a folder, such as sub-09"),
    ]
    for content, reason in (
        ("subject\tage\nsub-01\t1\n", "has no column participant_id"),
        ("participant_id\nsub-01\nsub-01\n", "duplicate participant_id sub-01"),
    ):
        write_text(table, content)
        assert any(severity == "error" and reason in text for severity, text in texts(study))


def test_patients_of_a_table_of_our_own_own_the_cases(study: Path) -> None:
    """Such as for one person who took part twice."""
    rows = "sub-01_ses-1,A\nsub-01_ses-2,A\nsub-02_ses-1,A\n"
    write_text(study / "patients.csv", f"case,patient\n{rows}")
    assert {case.owner for case in find_dataset(study).cases} == {"A"}
    write_text(study / "patients.csv", f"case,patient\n{rows}sub-03,B\n")
    with pytest.raises(DataError, match="there is no case 'sub-03'"):
        find_dataset(study)


def test_what_is_not_as_it_should_be_is_told(study: Path) -> None:
    (study / "dataset_description.json").unlink()
    anat = study / "sub-02" / "ses-1" / "anat"
    (anat / "sub-02_T1w.nii.gz").symlink_to(anat / "sub-02_ses-1_T1w.nii.gz")
    (anat / "sub-02_ses-1_PDw.nii.gz").symlink_to("../../../.git/annex/objects/none")
    (anat / "sub-02_ses-1_T2w.nii").write_bytes(b"")
    found = texts(study)
    assert found[0] == ("warning", "is missing, and BIDS wants one")
    wrong_name = "is not named as BIDS wants (sub-LABEL[_ses-LABEL][_...]_SUFFIX) and is ignored"
    assert ("warning", wrong_name) in found
    assert ("error", "is not a regular file: it is a pipe, a device or a broken link") in found
    assert any("is T2w of sub-02_ses-1, and so is" in text for severity, text in found if severity == "error")


@pytest.mark.parametrize("table", ["index\tname\none\tx\n", "index\nx\n", "\xff"])
def test_a_table_of_labels_that_is_none_is_an_error(study: Path, table: str) -> None:
    (study / "derivatives" / "manual" / "dseg.tsv").write_bytes(table.encode("latin-1"))
    assert [severity for severity, _ in texts(study)] == ["error"]


def test_subjects_without_a_scan_are_no_dataset(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, ["01"])
    write_label(root, "sub-01_dseg")
    with pytest.raises(DataError, match="no scan of any that is named as BIDS wants"):
        scan_dataset(root)
