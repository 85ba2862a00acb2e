"""Segmentations read by hand with pydicom, without the library that wrote them; and made-up predictions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.inference.applied_model import AppliedModel, Prediction
from client.inference.dicom.source import read_source
from client.inference.dicom.write import write_dicom
from client.inference.results import CaseFiles, SegmentationKind
from common.imaging.geometry import Grid
from common.imaging.io.dicom.slices import Series
from common.plan.base import Code
from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from tests.dicom_series import need_tool

NAMES = {1: "head", 2: "tail"}
TO_RAS = np.array((-1.0, -1.0, 1.0))


def model(
    names: dict[int, str] = NAMES,
    codes: dict[int, Code] | None = None,
    sha256: str = "ab" * 32,
    settings: str = "overlap=0.5",
) -> AppliedModel:
    stages = {"channels": (8, 16), "strides": ((1, 1, 1), (2, 2, 2)), "kernels": ((3, 3, 3),) * 2, "blocks": (1, 1)}
    plan = Plan(
        channels=("t1",),
        labels=names,
        label_codes=codes or {},
        preprocessing=PreprocessingPlan(),
        model=ModelPlan(classes=len(names) + 1, groups=4, **stages),
        patch_size=(16, 16, 16),
    )
    return AppliedModel(plan, sha256, "hippocampus", (settings,))


def made_up(grid: Grid, labels: int = 2, seed: int = 0) -> Prediction:
    """Any labels and probabilities, on the RAS+ grid of a volume; the first slices are empty."""
    random = np.random.default_rng(seed)
    scores = random.random((labels + 1, *grid.shape), dtype=np.float32)
    scores[0, ..., : grid.shape[2] // 3] = 50
    probabilities = scores / scores.sum(axis=0)
    return Prediction(probabilities.argmax(axis=0).astype(np.uint8), probabilities)


def write(
    folder: Path,
    series: Series,
    prediction: Prediction,
    kind: SegmentationKind = "binary",
    applied: AppliedModel | None = None,
) -> tuple[Dataset, Dataset]:
    """Write and read a segmentation and a report."""
    folder.mkdir(exist_ok=True)
    files = CaseFiles(segmentation=folder / "seg.dcm", report=folder / "sr.dcm")
    write_dicom(read_source(series), prediction, applied or model(), kind, files)
    return pydicom.dcmread(folder / "seg.dcm"), pydicom.dcmread(folder / "sr.dcm")


def planes(segmentation: Dataset) -> list[tuple[int, NDArray[np.float64], NDArray[np.uint8]]]:
    """Segment number (0 in a label map), affine from column, row to RAS+, and pixels (columns, rows) of each frame."""
    rows, columns, count = segmentation.Rows, segmentation.Columns, int(segmentation.NumberOfFrames)
    stored = np.frombuffer(segmentation.PixelData, dtype=np.uint8)
    if segmentation.BitsAllocated == 1:
        stored = np.unpackbits(stored, bitorder="little")
    stored = stored[: rows * columns * count].reshape(count, rows, columns)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    found = []
    for groups, pixels in zip(segmentation.PerFrameFunctionalGroupsSequence, stored, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        affine = np.column_stack((orientation[0] * across, orientation[1] * down, position)) * TO_RAS[:, None]
        segment = groups.get("SegmentIdentificationSequence", shared.get("SegmentIdentificationSequence"))
        found.append((int(segment[0].ReferencedSegmentNumber) if segment else 0, affine, pixels.T))
    return found


def on_grid(segmentation: Dataset, grid: Grid, labels: int = 2) -> NDArray[np.uint8]:
    """The stored values of each segment (labels, x, y, z) on a grid, by the positions of corners of frames alone."""
    found = np.zeros((labels, *grid.shape), dtype=np.uint8)
    back = np.linalg.inv(grid.affine)
    for segment, affine, pixels in planes(segmentation):
        columns, rows = np.meshgrid(*map(np.arange, pixels.shape), indexing="ij")
        places = np.stack((columns, rows, np.ones_like(rows)), axis=-1) @ affine.T
        exact = places @ back[:3, :3].T + back[:3, 3]
        index = np.rint(exact).astype(int)
        assert np.abs(exact - index).max() < 0.05
        x, y, z = np.moveaxis(index, -1, 0)
        for label in [segment] if segment else range(1, labels + 1):
            found[label - 1, x, y, z] = pixels if segment else pixels == label
    return found


def errors_of_dciodvfy(path: Path) -> list[str]:
    """What the validator of dicom3tools calls an error."""
    done = subprocess.run([need_tool("dciodvfy"), "-new", path], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    assert any("Segmentation" in line or "SR" in line or "Not found" in line for line in lines), lines
    return [line for line in lines if line.startswith("Error")]
