"""Nearly equal scans share a print; scans of different patients share none."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.imaging.coarse_print import DIGITS, _block_means, coarse_prints
from common.imaging.io.nifti import read_volume
from common.imaging.phantoms.dataset import write_phantom_dataset

Scan = NDArray[np.float32]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    folder = write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [20], seed=0, shape=(32, 32, 32))
    return [read_volume(file).array for file in sorted((folder / "imagesTr").glob("*.nii.gz"))]


@pytest.fixture(scope="module")
def scans(phantoms: list[Scan], hippocampus: Path) -> list[Scan]:
    files = sorted((hippocampus / "imagesTr").glob("[!.]*.nii.gz"))[:40]
    return [*phantoms, *(read_volume(file).array for file in files)]


def slow_block_means(volume: Scan) -> list[float]:
    """One block after the other."""
    blocks = [volume]
    for axis in range(3):
        blocks = [part for block in blocks for part in np.array_split(block, min(4, volume.shape[axis]), axis)]
    found = []
    for block in blocks:
        values = np.sort(block[tuple(slice(None, None, math.ceil(size / 16)) for size in block.shape)], axis=None)
        cut = math.ceil(values.size / 8) if values.size > 2 else 0
        found.append(values[cut : values.size - cut].mean(dtype=np.float64))
    return found


@pytest.mark.parametrize(
    "shape", [(8, 8, 8), (35, 51, 35), (1, 2, 3), (5, 4, 70), (90, 3, 67), (4, 4, 4), (130, 64, 7), (1, 1, 1)]
)
def test_the_means_of_all_blocks_are_those_of_each(shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(sum(shape)).normal(0, 100, shape).astype(np.float32)
    np.testing.assert_allclose(_block_means(volume), slow_block_means(volume), rtol=1e-12)


def share(one: Scan, other: Scan) -> bool:
    return bool(set(coarse_prints(one)) & set(coarse_prints(other)))


def test_scans_of_different_patients_share_no_print(scans: list[Scan]) -> None:
    prints = [set(coarse_prints(scan)) for scan in scans]
    assert all(len(one) >= 1 and all(len(text) == DIGITS for text in one) for one in prints)
    assert not [1 for one, other in combinations(prints, 2) if one & other]


@pytest.mark.parametrize("factor", [0.0, 1.0, 100.0])
def test_one_changed_voxel_keeps_a_print(scans: list[Scan], factor: float) -> None:
    for seed, scan in enumerate(scans):
        place = tuple(np.random.default_rng(seed).integers(0, scan.shape))
        changed = scan.copy()
        changed[place] = factor * scan.max() + 1
        assert share(scan, changed)


@pytest.mark.parametrize("type_", ["int16", "float64"])
def test_other_numbers_keep_a_print(scans: list[Scan], type_: str) -> None:
    """int16 with a slope and an intercept, as converters write it."""
    for scan in scans:
        low, slope = scan.min(), np.ptp(scan) / 65_000
        stored = np.rint((scan - low) / slope - 32_500).astype(type_)
        assert share(scan, ((stored.astype(np.float64) + 32_500) * slope + low).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 2, 5), (1, 5, 1, 1)])
def test_small_volumes_have_prints_and_flat_ones_none(shape: tuple[int, ...]) -> None:
    assert coarse_prints(np.full(shape, 7, np.float32)) == ()
    ramp = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert len(coarse_prints(ramp)) == (6 if ramp.size > 1 else 0)
    ramp.flat[0] = np.nan
    assert coarse_prints(ramp) == ()
