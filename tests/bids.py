"""BIDS datasets made up in the form of the public examples, and the BIDS validator, which judges them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

SHAPE = (10, 12, 8)
AFFINE = np.diag((1.0, 1.0, 2.0, 1.0))
SIDECAR = {"MagneticFieldStrength": 3, "Manufacturer": "Nobody"}


def write_text(path: Path, content: str | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_dataset(root: Path, subjects: Sequence[str] = ("01", "02")) -> Path:
    """The files at the root of a dataset."""
    description = {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}
    write_text(root / "dataset_description.json", description)
    write_text(root / "README.md", "Scans that nobody took. " * 20)
    rows = "".join(f"sub-{subject}\t{30 + index}\n" for index, subject in enumerate(subjects))
    write_text(root / "participants.tsv", f"participant_id\tage\n{rows}")
    write_text(root / "participants.json", {"age": {"Description": "age at the scan", "Units": "year"}})
    return root


def write_derivative(root: Path, name: str = "manual", table: str = "dseg.tsv") -> Path:
    """The files at the root of a folder of derivatives; returns it."""
    folder = root / "derivatives" / name
    description = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": name}]}
    write_text(folder / "dataset_description.json", description)
    if table:
        write_text(folder / table, "index\tname\n0\tbackground\n1\tanterior\n2\tposterior\n")
    return folder


def write_scan(root: Path, name: str, seed: int = 0) -> Path:
    """An image, into the folder that its name says."""
    voxels = np.random.default_rng([seed, len(name)]).integers(1, 900, SHAPE).astype(np.int16)
    path = _write(root, name, voxels)
    write_text(path.with_name(f"{name}.json"), SIDECAR)
    return path


def write_label(folder: Path, name: str, highest: int = 2) -> Path:
    """A label map, into the folder that its name says."""
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[2:6, 2:6, 2:4] = 1
    label[6:8, 2:6, 2:4] = highest
    path = _write(folder, name, label)
    write_text(path.with_name(f"{name}.json"), {"SpatialReference": "orig"} if "space" in name else {})
    return path


def _write(root: Path, name: str, voxels: np.ndarray[Any, Any]) -> Path:
    words = name.split("_")
    sessions = [word for word in words[1:2] if word.startswith("ses-")]
    path = Path(root, words[0], *sessions, "anat", f"{name}.nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image: Any = nibabel.Nifti1Image
    image = make_image(voxels, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def validate(root: Path) -> list[tuple[str, str]]:
    """Errors that the BIDS validator finds, derivatives included: their codes and files."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    program = str(beside) if beside.exists() else shutil.which("bids-validator-deno")
    if program is None:
        reason = "bids-validator-deno is missing: run make setup"
        if os.environ.get("FEDVOX_REQUIRE_DICOM_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    environment = {**os.environ, "PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [program, str(root), "--recursive", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    report = json.loads(done.stdout)
    reports = [report, *report.get("derivativesSummary", {}).values()]
    issues = [issue for one in reports for issue in one["issues"]["issues"]]
    return [(issue["code"], issue.get("location", "")) for issue in issues if issue["severity"] == "error"]
