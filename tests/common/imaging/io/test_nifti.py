from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.errors import DataError, OutputError
from common.imaging.geometry import Grid
from common.imaging.io.nifti import (
    channel_count,
    nifti_stem,
    read_label,
    read_volume,
    write_image,
    write_label,
    write_probabilities,
)
from common.imaging.volume import Source

AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.0, 0, 30], [0, 0, 2.0, -20], [0, 0, 0, 1.0]])  # LPS
SHAPE = (5, 6, 7)


def voxels(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 200, shape).astype(dtype)


def save(path: Path, array: np.ndarray, affine=AFFINE, **header) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i4", "u2", "f4", "f8"])
def test_reads_what_nibabel_reads_in_ras_order(tmp_path, name, dtype) -> None:
    path = save(tmp_path / name, voxels().astype(dtype))
    volume = read_volume(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    np.testing.assert_array_equal(volume.array[0], expected.get_fdata())
    np.testing.assert_allclose(volume.grid.affine, expected.affine)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    assert (volume.source.orientation, volume.grid.orientation) == ("LPS", "RAS")
    np.testing.assert_allclose(volume.source.grid.affine, AFFINE)


def test_applies_slope_and_intercept(tmp_path) -> None:
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(voxels(), np.eye(4))
    image.header.set_slope_inter(0.25, -1024)
    image.to_filename(path)
    stored = nibabel.load(path)
    assert (stored.dataobj.slope, stored.dataobj.inter) == (0.25, -1024)
    np.testing.assert_allclose(read_volume(path).array[0], stored.get_fdata(), rtol=1e-6)


def test_four_axes_and_several_files_are_channels(tmp_path) -> None:
    array = voxels((*SHAPE, 3))
    together = read_volume(save(tmp_path / "all.nii.gz", array))
    files = [save(tmp_path / f"scan_{i:04d}.nii.gz", array[..., i]) for i in range(3)]
    apart = read_volume(files)
    assert together.array.shape == (3, *SHAPE)
    np.testing.assert_array_equal(together.array, apart.array)
    itk_vector = save(tmp_path / "vector.nii.gz", array[:, :, :, None, :])
    np.testing.assert_array_equal(read_volume(itk_vector).array, together.array)
    assert [channel_count(path) for path in (tmp_path / "all.nii.gz", itk_vector, files[0])] == [3, 3, 1]


def test_channels_may_be_stored_in_different_directions(tmp_path) -> None:
    first = save(tmp_path / "a_0000.nii", voxels())
    flipped_affine = AFFINE @ np.array([[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    second = save(tmp_path / "a_0001.nii", voxels()[::-1], flipped_affine)
    volume = read_volume([first, second])
    np.testing.assert_array_equal(volume.array[0], volume.array[1])


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "f4", "f8"])
def test_labels_may_be_stored_as_any_number_type(tmp_path, dtype) -> None:
    label = voxels() % 3
    image = nibabel.Nifti1Image(label.astype(dtype), AFFINE, dtype=dtype)
    image.to_filename(tmp_path / "label.nii.gz")
    found, grid = read_label(tmp_path / "label.nii.gz")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, label[::-1, ::-1])
    assert grid.orientation == "RAS"


def test_labels_may_be_scaled_with_rounding(tmp_path) -> None:
    label = voxels() % 2
    image = nibabel.Nifti1Image((label * 255).astype(np.uint8), AFFINE)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([1 / 255, 0], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "label.nii").write_bytes(content)
    assert nibabel.load(tmp_path / "label.nii").get_fdata().max() != 1.0, "the slope must not be exact"
    np.testing.assert_array_equal(read_label(tmp_path / "label.nii")[0], label[::-1, ::-1])


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "not whole"), (np.nan, "not whole"), (np.inf, "not whole"), (-1, "-1"), (256, "256")]
)
def test_refuses_values_that_are_no_labels(tmp_path, value, text) -> None:
    label = np.zeros(SHAPE, np.float32)
    label[2, 3, 4] = value
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=f"label.nii.*{text}"):
        read_label(save(tmp_path / "label.nii", label))


def test_refuses_a_label_map_with_channels(tmp_path) -> None:
    with pytest.raises(DataError, match="one channel, this file has 2"):
        read_label(save(tmp_path / "label.nii", np.zeros((*SHAPE, 2), np.uint8)))


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL"])
def test_labels_return_to_the_scans_own_grid(tmp_path, name, code) -> None:
    grid = Grid(SHAPE, AFFINE).oriented(code)
    tilt = np.eye(4)
    tilt[:2, :2] = [[0.995004165, -0.099833417], [0.099833417, 0.995004165]]
    scan = save(tmp_path / "scan.nii.gz", voxels(grid.shape), tilt @ grid.affine, descrip=b"NAME^PATIENT")
    volume = read_volume(scan)
    label = (volume.array[0] > 100).astype(np.uint8)
    write_label(tmp_path / name, label, volume.source)
    written, original = nibabel.load(tmp_path / name), nibabel.load(scan)
    assert written.shape == original.shape
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, original.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "srow_x"):
        np.testing.assert_array_equal(written.header[field], original.header[field])
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj) > 100)
    assert b"PATIENT" not in bytes(written.header.binaryblock)
    np.testing.assert_array_equal(read_label(tmp_path / name)[0], label)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["scan.nii.gz", name])


def test_a_result_does_not_inherit_the_scans_scaling(tmp_path) -> None:
    image = nibabel.Nifti1Image(voxels(), AFFINE)
    image.header.set_slope_inter(0.1, 5)
    image.to_filename(tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    label = np.full(volume.grid.shape, 3, np.uint8)
    write_label(tmp_path / "out.nii", label, volume.source)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii").get_fdata(), 3)


def test_large_label_values_are_stored_as_int16(tmp_path) -> None:
    source = Source(Grid(SHAPE, AFFINE))
    write_label(tmp_path / "out.nii", np.full(SHAPE, 300), source)
    assert nibabel.load(tmp_path / "out.nii").get_data_dtype() == np.int16
    with pytest.raises(ValueError, match="40000"):
        write_label(tmp_path / "out.nii", np.full(SHAPE, 40000), source)


def test_nifti2_scans_get_nifti2_results(tmp_path) -> None:
    nibabel.Nifti2Image(voxels(), AFFINE).to_filename(tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_label(tmp_path / "out.nii.gz", np.zeros(SHAPE, np.uint8), volume.source)
    assert isinstance(nibabel.load(tmp_path / "out.nii.gz"), nibabel.Nifti2Image)


def test_probabilities_are_written_with_classes_last(tmp_path) -> None:
    volume = read_volume(save(tmp_path / "scan.nii", voxels()))
    probabilities = np.random.default_rng(0).random((3, *SHAPE), dtype=np.float32)
    write_probabilities(tmp_path / "out.nii.gz", probabilities, volume.source)
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.shape == (*SHAPE, 3)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii.gz").array, probabilities)


def test_images_are_clipped_to_their_integer_type(tmp_path) -> None:
    source = Source(Grid((1, 1, 4), np.eye(4)))
    write_image(tmp_path / "out.nii", np.array([[[-3.0, 1.6, 255.2, 999.0]]]), source, np.dtype(np.uint8))
    assert read_volume(tmp_path / "out.nii").array.ravel().tolist() == [0, 2, 255, 255]


def test_millimetres_whatever_the_header_counts_in(tmp_path) -> None:
    metres = AFFINE.copy()
    metres[:3] /= 1000
    volume = read_volume(save(tmp_path / "scan.nii", voxels(), metres, xyzt_units=1))
    np.testing.assert_allclose(volume.grid.spacing, (1.5, 1.0, 2.0), rtol=1e-5)
    write_label(tmp_path / "out.nii", np.zeros(SHAPE, np.uint8), volume.source)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "out.nii").affine, nibabel.load(tmp_path / "scan.nii").affine)


def test_tells_when_left_and_right_are_not_declared(tmp_path) -> None:
    declared = save(tmp_path / "a.nii", voxels())
    undeclared = save(tmp_path / "b.nii", voxels(), affine=None)
    assert read_volume(declared).source.orientation_declared
    assert not read_volume(undeclared).source.orientation_declared


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 200, 347, 348, 352, 400, -8, -1], ids=lambda keep: f"{keep}-bytes-kept")
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_refuses_truncated_files_by_name(tmp_path, name, keep) -> None:
    whole = save(tmp_path / name, voxels()).read_bytes()
    if keep >= len(whole):
        pytest.skip("the compressed file is shorter")
    (tmp_path / name).write_bytes(whole[:keep])
    with pytest.raises(DataError, match=name):
        read_volume(tmp_path / name)


def test_refuses_a_gzip_file_with_a_flipped_bit(tmp_path) -> None:
    path = save(tmp_path / "scan.nii.gz", voxels())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"scan.nii.gz.*gzip"):
        read_volume(path)


def test_gzip_is_recognised_by_content(tmp_path) -> None:
    plain = save(tmp_path / "plain.nii", voxels())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "unpacked.nii.gz").write_bytes(plain.read_bytes())
    for name in ("packed.nii", "unpacked.nii.gz"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, read_volume(plain).array)


def test_refuses_what_is_not_nifti(tmp_path) -> None:
    (tmp_path / "text.nii").write_text("patient,age\n" * 100)
    (tmp_path / "zeros.nii").write_bytes(bytes(1000))
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"patient,age\n" * 100))
    for name in ("text.nii", "zeros.nii", "text.nii.gz"):
        with pytest.raises(DataError, match=f"{name}.*not a NIfTI"):
            read_volume(tmp_path / name)
    with pytest.raises(DataError, match=r"none.nii.*does not exist"):
        read_volume(tmp_path / "none.nii")
    with pytest.raises(DataError, match="cannot be read"):
        read_volume(tmp_path)
    pair = nibabel.Nifti1Pair(voxels(), AFFINE)
    pair.to_filename(tmp_path / "pair.hdr")
    with pytest.raises(DataError, match="two-file"):
        read_volume(tmp_path / "pair.hdr")


@pytest.mark.parametrize(
    ("array", "header", "text"),
    [
        (voxels(), {"datatype": 999}, "damaged"),
        (voxels().astype(np.complex64), {}, "stores voxels as complex64; convert it"),
        (voxels((5, 6)), {}, "three axes"),
        (voxels((5, 6, 7, 2, 2)), {}, "three axes"),
        (voxels(), {"dim": [3, 5, 6, 7000, 1, 1, 1, 1]}, "truncated"),
        (voxels(), {"dim": [3, 5, 0, 7, 1, 1, 1, 1]}, "three axes"),
        (voxels(), {"srow_y": [0, 0, 0, 0]}, "spacing is zero|singular"),
        (voxels(), {"srow_x": [-1.5, 0.4, 0, 0]}, "sheared"),
        (voxels(), {"srow_x": [np.nan, 0, 0, 0]}, "NaN"),
        (voxels(), {"sform_code": 0, "qform_code": 0, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, "spacing is zero"),
        (voxels(), {"scl_slope": 1, "scl_inter": np.inf}, "damaged"),
    ],
    ids=lambda value: str(value)[:30].replace("\n", "") if not isinstance(value, np.ndarray) else "",
)
def test_refuses_unusable_headers(tmp_path, array, header, text) -> None:
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(array, AFFINE)
    content = bytearray(image.to_bytes())
    changed = image.header.copy()
    for key, value in header.items():
        changed[key] = value
    # nibabel would repair or refuse these while writing: put the header block in place by hand.
    block = bytearray(changed.binaryblock)
    block[108:112] = content[108:112]  # vox_offset
    if "scl_inter" not in header:
        block[112:120] = content[112:120]
    content[: len(block)] = block
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"scan\.nii: .*({text})"):
        read_volume(path)


def test_a_damaged_header_is_refused_or_read_as_it_can_be_written_back(tmp_path) -> None:
    """Random bytes in a header never lead to another error, nor to a result on another grid than its scan."""
    generator = np.random.default_rng(0)
    content = nibabel.Nifti1Image(voxels(), AFFINE).to_bytes()
    scan, result = tmp_path / "scan.nii", tmp_path / "result.nii"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        damaged = bytearray(content)
        for position in generator.integers(4, 352, 3):
            damaged[position] = generator.integers(256)
        scan.write_bytes(damaged)
        try:
            volume = read_volume(scan)
        except DataError:
            outcomes["refused"] += 1
            continue
        label = generator.integers(0, 3, volume.grid.shape).astype(np.uint8)
        write_label(result, label, volume.source)
        found, grid = read_label(result)
        np.testing.assert_array_equal(found, label)
        assert grid.matches(volume.grid)
        outcomes["read"] += 1
    assert min(outcomes.values()) > 50


def test_channels_on_different_grids_are_refused(tmp_path) -> None:
    first = save(tmp_path / "a_0000.nii", voxels())
    shifted = AFFINE.copy()
    shifted[2, 3] += 0.5
    with pytest.raises(DataError, match=r"a_0001.nii.*0.5 mm"):
        read_volume([first, save(tmp_path / "a_0001.nii", voxels(), shifted)])
    with pytest.raises(DataError, match=r"a_0002.nii.*shape"):
        read_volume([first, save(tmp_path / "a_0002.nii", voxels((5, 6, 8)))])
    with pytest.raises(DataError, match=r"a_0003.nii.*2 channels"):
        read_volume([first, save(tmp_path / "a_0003.nii", voxels((*SHAPE, 2)))])


def test_results_that_cannot_be_written_leave_nothing_behind(tmp_path) -> None:
    source = Source(Grid(SHAPE, AFFINE))
    label = np.zeros(SHAPE, np.uint8)
    with pytest.raises(OutputError, match=r"missing.*out\.nii"):
        write_label(tmp_path / "missing" / "out.nii", label, source)
    with pytest.raises(OutputError, match=r"\.nii\.gz"):
        write_label(tmp_path / "out.png", label, source)
    (tmp_path / "taken.nii").mkdir()
    with pytest.raises(OutputError, match=r"taken\.nii"):
        write_label(tmp_path / "taken.nii", label, source)
    with pytest.raises(ValueError, match="shape"):
        write_label(tmp_path / "out.nii", label[:-1], source)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.nii"]


def test_names_without_suffix() -> None:
    names = ["a.nii", "a.b.nii.gz", "A.NII.GZ", "._a.nii.gz", ".nii", "a.nrrd", "a.gz"]
    assert [nifti_stem(Path(name)) for name in names] == ["a", "a.b", "A", None, None, None, None]
