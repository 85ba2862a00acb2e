"""Reading a series of 300 slices of 512 x 512 against reading its files with pydicom.

``python -m tests.benchmarks.dicom_series`` makes the series, with as many elements as scanners write, and reads it in
processes of their own, in turns: ``bare`` is ``pydicom.dcmread`` and ``pixel_array`` of every file, and nothing else;
``ours`` finds the series, sorts it and makes the scaled float32 volume in RAS+. The figures are the median ratio of
all pairs, and the peak memory of ``ours`` above that of its imports, in volumes. ``--slices`` and ``--pairs`` make it
shorter.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

EDGE = 512
PRIVATE_ELEMENTS = 130


def write(folder: Path, slices: int) -> None:
    from tests.dicom_series import CT, make_series, save

    y, x = np.ogrid[-1:1:512j, -1:1:512j]
    random = np.random.default_rng(0)
    names = random.permutation(slices)
    for index in range(slices):
        plane = (1500 * np.clip(1 - x**2 - y**2, 0, 1) + random.normal(0, 20, (EDGE, EDGE)) + 40).astype(np.int16)
        (one,) = make_series(plane[None], kind=CT, origin=(-180, -180, 1.25 * index), bits_stored=16)
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
        one.RescaleSlope, one.RescaleIntercept = "1", "-1024"
        private = one.private_block(0x0019, "MADE UP", create=True)
        for element in range(PRIVATE_ELEMENTS):
            private.add_new(element, ("LO", "DS", "SL")[element % 3], ("a text", "0.000000", element)[element % 3])
        save(folder, [one], names=[f"{names[index]:04d}.dcm"])


def bare(folder: Path) -> float:
    import pydicom

    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        np.asarray(pydicom.dcmread(path).pixel_array)
    return time.perf_counter() - start


def ours(folder: Path) -> float:
    from common.imaging.io.dicom.find import find_series
    from common.imaging.io.dicom.rules import USUAL_RULES
    from common.imaging.io.dicom.volume import read_series

    start = time.perf_counter()
    (series,) = find_series(folder, USUAL_RULES).series
    read_series(series)
    return time.perf_counter() - start


def measure(name: str, folder: Path) -> dict[str, float]:
    import pydicom.pixels

    from common.imaging.io.dicom import volume

    assert pydicom.pixels and volume
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = {"bare": bare, "ours": ours}[name](folder)
    return {"seconds": seconds, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}


def run(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.dicom_series", "--measure", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="reading a DICOM series against bare pydicom")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", choices=("bare", "ours"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.slices)
        pairs = [(run("bare", folder), run("ours", folder)) for _ in range(options.pairs)]
    ratios = [ours["seconds"] / bare["seconds"] for bare, ours in pairs]
    volume_kb = 4 * EDGE**2 * options.slices / 1024
    peak = statistics.median(ours["peak_kb"] / volume_kb for _, ours in pairs)
    for bare_run, ours_run in pairs:
        print(f"bare {bare_run['seconds']:.2f} s, ours {ours_run['seconds']:.2f} s")
    print(
        f"{options.slices} slices: {statistics.median(ratios):.2f} x the time of pydicom over the files "
        f"(wanted: at most 1.3), peak memory {peak:.2f} x the float32 volume (wanted: at most 2.5)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
