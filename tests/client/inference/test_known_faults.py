"""Inputs with faults that users of other tools reported: each is named, and one bad file never ends the work on all."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.cli.entry import main
from common.config.federation import load_federation
from common.errors import DataError
from common.imaging.io.nifti import read_volume
from server.simulation.data_setup import examine
from tests.client.inference.test_predict import make_bundle

CHECKS = [
    ("labels-swapped/data", "labels-swapped/federation.yaml", 1, "label 1 is 'a' here, and 'b' in the federation"),
    ("ignore-label/data", None, 1, "label 2 ('ignore') marks voxels without annotation"),
    ("label-path/data", None, 1, "training names the label ./labelsTr2/case_0.nii.gz of case_0, and labelsTr/ is read"),
    ("backslash-paths/data", None, 0, "Usable."),
    ("empty-training/data", None, 1, "its training list is empty"),
    ("file-ending-nodot/data", None, 0, "file_ending 'nii.gz' is read as '.nii.gz'"),
    ("metres/data", None, 1, "images/c1.nii: has voxels of 1000 x 1500 x 2000 mm"),
    ("odd-first/data", None, 1, "images/a.nii.gz: has 4 channels, expected 1"),
    ("pair/data", None, 1, "images/c1.hdr: is half of a two-file NIfTI (.hdr and .img) and is ignored: convert it"),
    ("vox-offset-nan/data", None, 1, "images/c1.nii: its NIfTI header is damaged (vox_offset is nan)"),
    ("qform-sform-flip/qs_flip", None, 0, "disagree about left and right: axes LAS and RAS; the sform is used"),
    ("qform-sform-flip/qs_disagree", None, 0, "differ by 20 degrees; the sform is used"),
    ("qform-sform-flip/pixdim_vs_sform", None, 0, "its sform 1 x 1.5 x 2: the sform is used"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "model", (1.0, 1.0, 1.0))


@pytest.mark.parametrize(("data", "federation", "status", "text"), CHECKS, ids=[check[0] for check in CHECKS])
def test_check_names_the_fault(
    known_faults: Path, capsys: pytest.CaptureFixture[str], data: str, federation: str | None, status: int, text: str
) -> None:
    arguments = ["check", "--data", str(known_faults / data)]
    arguments += ["--federation", str(known_faults / federation)] if federation else []
    assert main(arguments) == status
    printed = capsys.readouterr().out
    assert text in printed
    assert printed.count("\nerror: ") == (4 if "label-path" in data else 2 if federation else status)


@pytest.mark.parametrize("data", ["metres/data", "vox-offset-nan/data", "qform-sform-flip/qs_flip", "pair/data"])
def test_predict_does_the_good_scan(
    known_faults: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    images = known_faults / data / "images"
    status = main(["predict", "--model", str(model), "--input", str(images), "--output", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]
    if data == "pair/data":
        return  # the pair has no suffix of a scan: not one of those that were given
    assert status == 1
    told = capsys.readouterr().err
    assert "images/c1.nii" in told and "1 of 2 scans done" in told


def test_a_bomb_ends_nothing(known_faults: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(known_faults / "metres/data/images/good.nii.gz", scans)
    monkeypatch.setattr(sys, "argv", ["make.py", str(scans / "a.nii.gz")])
    # As given it takes a minute to make; that it is refused does not depend on how much follows.
    source = (known_faults / "gz-bomb/make.py").read_text(encoding="utf-8")
    (tmp_path / "make.py").write_text(source.replace("range(4000)", "range(100)"), encoding="utf-8")
    runpy.run_path(str(tmp_path / "make.py"))
    with pytest.raises(DataError, match=r"a\.nii\.gz: unpacks to far more than the 2,352 bytes"):
        read_volume(scans / "a.nii.gz")
    assert main(["predict", "--model", str(model), "--input", str(scans), "--output", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def test_an_infinite_offset_is_an_error_of_its_file(known_faults: Path) -> None:
    with pytest.raises(DataError, match=r"c1_inf\.nii: its NIfTI header is damaged \(vox_offset is inf\)"):
        read_volume(known_faults / "vox-offset-nan/c1_inf.nii")


@pytest.mark.parametrize(("data", "text"), [("labels-swapped/data", "label 1 is 'a' here"), ("metres/data", "c1.nii")])
def test_a_simulation_names_what_it_refuses(known_faults: Path, data: str, text: str) -> None:
    config = load_federation(known_faults / "labels-swapped/federation.yaml")
    with pytest.raises(DataError, match=text):
        examine(config, known_faults / data, None, lambda event: None)


def test_evaluate_refuses_swapped_labels(known_faults: Path, model: Path, tmp_path: Path) -> None:
    """The model's labels are head and tail."""
    data = tmp_path / "data"
    shutil.copytree(known_faults / "labels-swapped/data", data)
    data.chmod(0o755)
    (data / "dataset.json").unlink()
    (data / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "tail", "2": "head"}}))
    arguments = ["evaluate", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "metrics.csv")]
    assert main(arguments) == 1
    (tmp_path / "site.yaml").write_text("labels_map: {tail: tail, head: head}\n")
    assert main([*arguments, "--site", str(tmp_path / "site.yaml")]) == 0
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {f"case_{number}" for number in range(4)}


def test_free_text_of_a_header_does_not_reach_a_result(known_faults: Path, model: Path, tmp_path: Path) -> None:
    scan = known_faults / "db-name/scan.nii.gz"
    assert nibabel.load(scan).header["db_name"].item() != b""
    assert main(["predict", "--model", str(model), "--input", str(scan), "--output", str(tmp_path / "out")]) == 0
    header = nibabel.load(tmp_path / "out" / "scan.nii.gz").header
    assert {header[field].item() for field in ("db_name", "descrip", "aux_file", "intent_name")} == {b""}
    np.testing.assert_allclose(header.get_best_affine(), nibabel.load(scan).affine)
