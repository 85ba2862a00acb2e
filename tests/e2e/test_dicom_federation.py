"""A federation of sites that read DICOM with DICOM labels is the federation of the same cases in NIfTI."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from server.cli.entry import main
from tests.dicom_labels import segmentation, structure_set, write
from tests.dicom_series import make_series, save

LABELS = {1: "bright", 2: "dark"}
FEDERATION = """
name: formats
rounds: 4
seed: 1
channels: [t1]
labels: LABELS
model: {channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}
training: {local_steps: 15, learning_rate: 0.01, precision: float32, batch_size: 2}
simulation:
  partition: {method: column, file: sites.csv, column: site, validation_fraction: 0.34}
"""
SHAPE = (20, 18, 16)
_LPS = np.diag((-1.0, -1.0, 1.0))


def write_both(root: Path) -> None:
    """Three sites with three patients each, as NIfTI and as an archive of DICOM."""
    for kind in ("images", "labels"):
        (root / "nifti" / kind).mkdir(parents=True)
    rows = ["case,site"]
    for index in range(9):
        name = f"case{index}"
        voxels, label, affine = scan(index)
        for kind, array in (("images", voxels), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(array, affine), root / "nifti" / kind / f"{name}.nii.gz")
        write_dicom(root / "dicom", index, name, (voxels, label, affine))
        rows.append(f"{name},site-{index % 3}")
    for folder in ("nifti", "dicom"):
        (root / folder / "sites.csv").write_text("\n".join(rows) + "\n")


def scan(index: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float64]]:
    """A bright and a dark ball in noise, on an oblique grid: image, label map and affine (RAS+)."""
    random = np.random.default_rng(index)
    label = np.zeros(SHAPE, dtype=np.uint8)
    for value, across in ((1, 6), (2, 14)):
        centre = np.array((across, 9, 8)) + random.uniform(-1.5, 1.5, 3)
        away = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - centre, axis=-1)
        label[away < random.uniform(3, 4)] = value
    voxels = np.rint(np.array((1000, 1900, 100))[label] + random.normal(0, 100, SHAPE)).clip(0).astype(np.uint16)
    turn = np.radians(5 * index)
    affine = np.eye(4)
    affine[:2, :2] = ((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn)))
    affine[:3, 3] = random.uniform(-100, 100, 3)
    return voxels, label, affine @ np.diag((1.0, 1.2, 1.5, 1.0))


def write_dicom(
    root: Path, index: int, name: str, case: tuple[NDArray[np.uint16], NDArray[np.uint8], NDArray[np.float64]]
) -> None:
    """A series, and its labels under other names and numbers than the federation's: codes alone tell what they are."""
    voxels, label, affine = case
    axes, origin = _LPS @ affine[:3, :3], _LPS @ affine[:3, 3]
    slices = make_series(voxels.transpose(2, 1, 0).copy(), axes=axes, origin=origin, PatientID=f"MRN {index}")
    save(root / name, slices, names=[f"{999 - number}" for number in range(len(slices))])
    masks = {f"Struktur {value}": label.transpose(2, 1, 0) == value for value in reversed(LABELS)}
    codes = {f"Struktur {value}": ("99TEST", f"T{value}", LABELS[value]) for value in LABELS}
    make = structure_set if index % 3 == 2 else segmentation
    write(root / "labels" / f"{index}", make(slices, masks, codes=codes))


def simulate(folder: Path, data: Path) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """The plan, and the Dice of the last round by case and label."""
    folder.mkdir()
    coded = {value: {"name": name, "code": ["99TEST", f"T{value}", name]} for value, name in LABELS.items()}
    (folder / "federation.yaml").write_text(FEDERATION.replace("LABELS", json.dumps(coded)))
    run = folder / "run"
    assert main(["simulate", str(folder / "federation.yaml"), "--data", str(data), "--out", str(run)]) == 0
    plan = json.loads((run / "plan.json").read_text())
    with (run / "validation.csv").open(newline="") as file:
        scores = {(row["case"], row["label"]): float(row["dice"]) for row in csv.DictReader(file)}
    return plan, scores


@pytest.mark.long
def test_dicom_with_labels_in_dicom_and_nifti_give_one_plan_and_one_model(tmp_path: Path) -> None:
    write_both(tmp_path)
    plan, dice = simulate(tmp_path / "of-dicom", tmp_path / "dicom")
    expected_plan, expected = simulate(tmp_path / "of-nifti", tmp_path / "nifti")
    # NIfTI stores its grid in float32.
    spacings = [found["preprocessing"].pop("spacing") for found in (plan, expected_plan)]
    assert spacings[0] == pytest.approx(spacings[1], abs=1e-6)
    assert plan == expected_plan and plan["label_codes"]
    assert dice.keys() == expected.keys() and min(expected.values()) > 0.5
    for key, value in dice.items():
        assert value == pytest.approx(expected[key], abs=0.002)
