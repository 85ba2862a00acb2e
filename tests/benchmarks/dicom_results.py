"""Writing the results of a series of 300 slices of 512 x 512 as DICOM, against highdicom alone and against NIfTI.

``python -m tests.benchmarks.dicom_results`` makes a series, and labels and probabilities of two balls in it, and writes
them in processes of their own, in turns. ``highdicom`` reads the headers with pydicom and writes the same binary
segmentation without anything else; ``nifti`` is the label map as ``.nii.gz``. Times leave out imports; peak memory is
that above imports and prediction. The figure is the median ratio of ``binary`` to ``highdicom``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

EDGE = 512
BALLS = ((1, 140), (2, 60))
"""Label and radius in voxels; the smaller is within the larger."""


def write_series(folder: Path, slices: int) -> None:
    from tests.dicom_series import CT, make_series, save

    plane = np.random.default_rng(0).integers(0, 4000, (1, EDGE, EDGE), dtype=np.uint16)
    axes = np.diag((0.7, 0.7, 1.0))
    save(folder, make_series(np.broadcast_to(plane, (slices, EDGE, EDGE)), kind=CT, axes=axes))


def balls(shape: tuple[int, int, int]) -> np.ndarray:
    x, y, z = np.ogrid[tuple(slice(size) for size in shape)]
    label = np.zeros(shape, dtype=np.uint8)
    for value, radius in BALLS:
        label[(x - shape[0] // 2) ** 2 + (y - shape[1] // 2) ** 2 + (z - shape[2] // 2) ** 2 < radius**2] = value
    return label


def measure(name: str, folder: Path) -> dict[str, float]:
    import highdicom
    import pydicom

    from client.inference.applied_model import Prediction
    from client.inference.dicom.source import read_source
    from client.inference.dicom.write import write_dicom
    from client.inference.results import CaseFiles
    from common.imaging.geometry import reorient_from_ras
    from common.imaging.io.dicom.find import find_series
    from common.imaging.io.dicom.rules import USUAL_RULES
    from common.imaging.io.nifti import write_label
    from common.imaging.volume import Source
    from tests.client.inference.dicom.by_hand import model

    (series,) = find_series(folder / "series", USUAL_RULES).series
    assert series.grid is not None
    label = balls(series.grid.to_ras().shape)
    probabilities = None
    if name == "fractional":
        probabilities = np.stack([label == value for value in range(len(BALLS) + 1)]).astype(np.float32) * 0.9 + 0.03
    out = folder / "out"
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak_mb()
    started = time.perf_counter()
    if name == "nifti":
        write_label(out.with_suffix(".nii.gz"), label, Source(series.grid))
    elif name == "highdicom":
        sources = [pydicom.dcmread(one.path, stop_before_pixels=True) for one in series.slices]
        voxels = reorient_from_ras(label, series.grid).transpose(2, 1, 0)
        bare_segmentation(highdicom, sources, voxels).save_as(out.with_suffix(".dcm"))
    else:
        files = CaseFiles(segmentation=out.with_suffix(".dcm"))
        kind: Any = name
        if name == "binary with report":
            files, kind = CaseFiles(segmentation=files.segmentation, report=out.with_suffix(".sr.dcm")), "binary"
        write_dicom(read_source(series), Prediction(label, probabilities), model(), kind, files)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": peak_mb() - before}


def peak_mb() -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def bare_segmentation(highdicom: Any, sources: list[Any], voxels: np.ndarray) -> Any:
    from pydicom.sr.codedict import codes

    for one in sources:  # what it wants to find in every source
        for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber"):
            setattr(one, keyword, None)
    algorithm = highdicom.AlgorithmIdentificationSequence("bare", codes.DCM.ArtificialIntelligence, "1")
    structure = codes.SCT.AnatomicalStructure
    segments = [
        highdicom.seg.SegmentDescription(value, f"ball {value}", structure, structure, "AUTOMATIC", algorithm)
        for value, _ in BALLS
    ]
    return highdicom.seg.Segmentation(
        *(sources, voxels, "BINARY", segments, highdicom.UID(), 1, highdicom.UID(), 1, "none", "none", "1", "1")
    )


def run(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.dicom_results", "--measure", name]
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    from client.inference.results import SegmentationKind

    names = ("nifti", "highdicom", *get_args(SegmentationKind), "binary with report")
    parser = argparse.ArgumentParser(description="writing DICOM results")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=names)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder / "series", options.slices)
        rounds = [{name: run(name, folder) for name in names} for _ in range(options.rounds)]
    for name in names:
        seconds, peak = (statistics.median(one[name][key] for one in rounds) for key in ("seconds", "peak_mb"))
        print(f"{name:18} {seconds:6.2f} s, {peak:6.0f} MB at its peak")
    ratio = statistics.median(one["binary"]["seconds"] / one["highdicom"]["seconds"] for one in rounds)
    print(f"{options.slices} slices: a binary segmentation takes {ratio:.2f} x the time of highdicom alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
