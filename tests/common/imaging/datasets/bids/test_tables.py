"""Which table names the labels of which label map."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.dataset import scan_dataset
from tests.bids import write_dataset, write_derivative, write_label, write_scan, write_text

BOTH = "index\tname\n1\tanterior\n2\tposterior\n"
SWAPPED = "index\tname\n1\tposterior\n2\tanterior\n"
FIRST = "index\tname\n1\tAnterior\n"


def read(tmp_path: Path, names: list[str], tables: dict[str, str], rules: str | None = None) -> dict[int, str] | str:
    """Names of labels in a dataset with these label maps and tables, or the error."""
    root = write_dataset(tmp_path)
    folder = write_derivative(root, table="")
    for name in names:
        write_scan(root, f"{name[:6]}_T1w")
        write_label(folder, name)
    for place, table in tables.items():
        write_text(folder / place, table)
    dataset, problems = scan_dataset(root, bids=BidsRules(labels=rules))
    errors = [f"{one.path and one.path.name} {one.text}" for one in problems if one.severity == "error"]
    assert len(errors) <= 1 and not (errors and dataset.labels)
    return errors[0] if errors else dataset.labels


@pytest.mark.parametrize(
    "tables",
    [
        {"dseg.tsv": BOTH},
        {"dseg.tsv": SWAPPED, "desc-one_dseg.tsv": BOTH},
        {"dseg.tsv": BOTH, "desc-two_dseg.tsv": SWAPPED, "desc-one_probseg.tsv": SWAPPED},
        {"desc-one_dseg.tsv": SWAPPED, "sub-01/dseg.tsv": BOTH, "sub-02/sub-02_dseg.tsv": BOTH},
        {"dseg.tsv": SWAPPED, "sub-01/anat/sub-01_dseg.tsv": BOTH, "sub-02/anat/sub-02_desc-one_dseg.tsv": BOTH},
        {"dseg.tsv": BOTH, "sub-02/anat/sub-02_dseg.tsv": FIRST},
    ],
)
def test_the_nearest_table_that_fits_names_the_labels(tmp_path: Path, tables: dict[str, str]) -> None:
    found = read(tmp_path, ["sub-01_desc-one_dseg", "sub-02_desc-one_dseg"], tables)
    assert found == {1: "anterior", 2: "posterior"}


@pytest.mark.parametrize(
    ("tables", "error"),
    [
        ({"dseg.tsv": BOTH, "sub-02/anat/sub-02_dseg.tsv": SWAPPED}, "sub-02_dseg.tsv contradicts dseg.tsv about 1"),
        (
            {"sub-01/sub-01_dseg.tsv": FIRST, "sub-02/sub-02_dseg.tsv": "index\tname\n2\tanterior\n"},
            "sub-02_dseg.tsv contradicts sub-01/sub-01_dseg.tsv about anterior",
        ),
        (
            {"sub-02/anat/sub-02_dseg.tsv": BOTH},
            "sub-01_dseg.nii.gz has no table of label names, and others have one, such as sub-02/anat/sub-02_dseg.tsv",
        ),
    ],
)
def test_label_maps_whose_tables_differ_are_refused(tmp_path: Path, tables: dict[str, str], error: str) -> None:
    advice = "write one table for all, or choose label maps of one kind by bids.labels in site.yaml"
    assert read(tmp_path, ["sub-01_dseg", "sub-02_dseg"], tables) == f"{error}: {advice}"


def test_two_tables_that_fit_alike_are_refused(tmp_path: Path) -> None:
    tables = {"desc-one_dseg.tsv": BOTH, "seg-two_dseg.tsv": BOTH}
    assert read(tmp_path, ["sub-01_seg-two_desc-one_dseg"], tables) == (
        "seg-two_dseg.tsv names the labels of sub-01_seg-two_desc-one_dseg.nii.gz, and so does desc-one_dseg.tsv: "
        "remove one"
    )


@pytest.mark.parametrize("names", [("desc-one", "desc-two"), ("seg-aseg", "seg-aparc"), ("atlas-A", "desc-B")])
def test_label_maps_of_several_kinds_are_one_only_where_the_hospital_says_so(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    files = [f"sub-01_{names[0]}_dseg", f"sub-02_{names[1]}_dseg"]
    assert read(tmp_path / "a", files, {"dseg.tsv": BOTH}) == (
        f"{files[1]}.nii.gz is of another kind than {files[0]}.nii.gz by its name: choose in site.yaml, such as "
        f"bids: {{labels: '*_{names[0]}_dseg'}}"
    )
    assert read(tmp_path / "b", files, {"dseg.tsv": BOTH}, "*_dseg") == {1: "anterior", 2: "posterior"}
    tables = {"dseg.tsv": BOTH, f"{names[1]}_dseg.tsv": SWAPPED}
    assert "contradicts dseg.tsv" in str(read(tmp_path / "c", files, tables, "*_dseg"))
