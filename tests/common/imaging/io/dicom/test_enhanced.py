"""Enhanced multi-frame images: the same volumes as the classic images with the same slices."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from common.imaging.io.dicom.volume import read_series
from common.imaging.io.nifti import read_volume
from tests.dicom_series import CT, MR, make_series, need_tool, only_series_in, save, series_in

ENHANCED = {CT: "1.2.840.10008.5.1.4.1.1.2.1", MR: "1.2.840.10008.5.1.4.1.1.4.1"}
ROTATED = np.linalg.qr(np.array(((0.9, 0.1, 0.2), (-0.1, 0.7, 0.3), (0.02, -0.2, 2.0))))[0] * (0.8, 0.9, 2.5)


def item(**values: object) -> Dataset:
    found = Dataset()
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def enhance(slices: Sequence[Dataset], order: Sequence[int] | None = None) -> Dataset:
    """One enhanced image of classic ones, its frames in any order; what all frames share is shared."""
    first = slices[0]
    frames = [slices[index] for index in (order or range(len(slices)))]
    kept = (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SOPInstanceUID",
        "FrameOfReferenceUID",
        "Modality",
        "Rows",
        "Columns",
    )
    kept += ("SeriesNumber", "SeriesDescription", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    one = item(**{keyword: first[keyword].value for keyword in kept})
    one.SOPClassUID, one.ImageType = UID(ENHANCED[first.SOPClassUID]), ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.NumberOfFrames = 1, "MONOCHROME2", len(frames)
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=9)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
    )
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = [frame_groups(frame, index) for index, frame in enumerate(frames)]
    one.PixelData = b"".join(frame.PixelData for frame in frames)
    return one


def frame_groups(frame: Dataset, index: int) -> Dataset:
    content = item(FrameAcquisitionNumber=index + 1, DimensionIndexValues=[1, index + 1])
    if "TemporalPositionIdentifier" in frame:
        content.TemporalPositionIndex = frame.TemporalPositionIdentifier
    groups = item(
        PlanePositionSequence=[item(ImagePositionPatient=frame.ImagePositionPatient)],
        FrameContentSequence=[content],
    )
    if "RescaleSlope" in frame:
        scaling = item(RescaleSlope=frame.RescaleSlope, RescaleIntercept=frame.RescaleIntercept, RescaleType="US")
        groups.PixelValueTransformationSequence = [scaling]
    if "EchoTime" in frame:
        groups.MREchoSequence = [item(EffectiveEchoTime=float(frame.EchoTime))]
    if "DiffusionBValue" in frame:
        direction = item(DiffusionGradientOrientation=[float(frame.DiffusionBValue % 7), 0.0, 1.0])
        diffusion = item(DiffusionBValue=float(frame.DiffusionBValue), DiffusionGradientDirectionSequence=[direction])
        groups.MRDiffusionSequence = [diffusion]
    return groups


def noisy(kind: str, seed: int = 0) -> list[Dataset]:
    voxels = np.random.default_rng(seed).integers(0, 4000, (9, 12, 16), dtype=np.uint16)
    slices = make_series(voxels, kind=kind, axes=ROTATED, bits_stored=12)
    for index, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = str(1 + index / 4), "-1000"
    return slices


@pytest.mark.parametrize("kind", [CT, MR])
def test_frames_make_the_volume_of_the_classic_slices(tmp_path: Path, kind: str) -> None:
    slices = noisy(kind)
    classic = read_series(only_series_in(save(tmp_path / "classic", slices)))
    order = [int(index) for index in np.random.default_rng(1).permutation(9)]
    series = only_series_in(save(tmp_path / "enhanced", [enhance(slices, order)]))
    assert series.instances == 1 and len(series.slices) == 9
    enhanced = read_series(series)
    np.testing.assert_array_equal(enhanced.array, classic.array)
    assert enhanced.grid.displacement_mm(classic.grid) < 1e-9


@pytest.mark.parametrize("kind", [CT, MR])
def test_geometry_equals_that_of_dcm2niix(tmp_path: Path, kind: str) -> None:
    slices = noisy(kind)
    for one in slices:
        one.RescaleSlope = "1"
    one = enhance(slices)
    one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 2.5  # which dcm2niix believes
    folder = save(tmp_path / "enhanced", [one])
    (tmp_path / "nifti").mkdir()
    command = [need_tool("dcm2niix"), "-b", "n", "-z", "n", "-f", "%j", "-o", tmp_path / "nifti", folder]
    subprocess.run(command, check=True, capture_output=True)
    theirs = read_volume(next((tmp_path / "nifti").glob("*.nii")))
    ours = read_series(only_series_in(folder))
    assert ours.grid.displacement_mm(theirs.grid) <= 0.01
    np.testing.assert_array_equal(ours.array, theirs.array)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=lambda one: one.name)
def test_compressed_frames_are_read_bit_by_bit(tmp_path: Path, syntax: str) -> None:
    slices = noisy(MR)
    order = [3, 0, 8, 1, 2, 7, 4, 6, 5]
    plain = read_series(only_series_in(save(tmp_path / "plain", [enhance(slices, order)])))
    one = enhance(slices, order)
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.set_original_encoding(False, True)
    one.add_new("PixelData", "OW", one.PixelData)
    one.compress(syntax, generate_instance_uid=False)
    other = read_series(only_series_in(save(tmp_path / "other", [one], syntax)))
    np.testing.assert_array_equal(other.array, plain.array)


@pytest.mark.parametrize(
    ("keyword", "values", "parts"),
    [
        ("EchoTime", (5, 10), ["echo time 5", "echo time 10"]),
        ("DiffusionBValue", (0, 800), ["b-value 0", "b-value 800"]),
        ("TemporalPositionIdentifier", (1, 2), ["time point 1", "time point 2"]),
    ],
)
def test_volumes_within_one_file_are_split(
    tmp_path: Path, keyword: str, values: tuple[int, int], parts: list[str]
) -> None:
    stacks = [noisy(MR, seed) for seed in (1, 2)]
    for stack, value in zip(stacks, values, strict=True):
        for one in stack:
            setattr(one, keyword, value)
    found = series_in(save(tmp_path / "in", [enhance([*stacks[0], *stacks[1]])]))
    assert [series.part for series in found] == parts
    for index, series in enumerate(found):
        classic = read_series(only_series_in(save(tmp_path / f"classic{index}", stacks[index])))
        np.testing.assert_array_equal(read_series(series).array, classic.array)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"NumberOfFrames": 8}, "has 8 frames and describes 9"),
        ({"NumberOfFrames": 100_000_000}, "has truncated pixel data"),
        ({"NumberOfFrames": -3}, "has -3 frames"),
        ({"PerFrameFunctionalGroupsSequence": []}, "has 9 frames and describes 0"),
        ({"SharedFunctionalGroupsSequence": []}, "has no position in the patient"),
    ],
)
def test_frames_that_are_not_described_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    one = enhance(noisy(MR))
    for keyword, value in change.items():
        setattr(one, keyword, value)
    assert reason in only_series_in(save(tmp_path, [one])).refusal


def test_a_classic_image_has_one_frame(tmp_path: Path) -> None:
    slices = make_series(np.ones((8, 8, 4), dtype=np.uint16))
    for one in slices:
        one.Rows, one.NumberOfFrames = 4, 2
    assert "has 2 frames and describes 1" in only_series_in(save(tmp_path, slices)).refusal
