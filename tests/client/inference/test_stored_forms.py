"""One scan, stored in every way that scanners and converters store it, gets the same mask at the same place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from client.inference.predict import PredictOptions, Predictor, predict_path
from tests.client.inference.test_predict import make_bundle

SHAPE = (22, 18, 14)
AFFINE = np.array([[1.5, 0, 0, -20], [0, 1.2, 0, 15], [0, 0, 2.0, 40], [0, 0, 0, 1.0]])
PIXELS = np.random.default_rng(5).integers(0, 120, SHAPE)
PIXELS[6:15, 5:12, 4:10] //= 3


def turned(axis: int, degrees: float) -> NDArray[np.float64]:
    """A patient who lies askew."""
    first, second = [other for other in range(3) if other != axis]
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


@dataclass(frozen=True)
class Form:
    """How the scan is stored."""

    name: str
    axes: str = "RAS"
    world: tuple[int, float] = (0, 0.0)
    unit: str = "mm"
    dtype: str = "<i2"
    slope: float = 1.0
    intercept: float = 0.0
    second: bool = False
    more_axes: int = 0
    suffix: str = ".nii.gz"
    codes: tuple[int, int] = (1, 1)

    @property
    def per_mm(self) -> float:
        return {"meter": 1e-3, "micron": 1e3}.get(self.unit, 1.0)

    def write(self, folder: Path) -> Path:
        kind: Any = nibabel.Nifti2Image if self.second else nibabel.Nifti1Image
        ras = nibabel.Nifti1Image(PIXELS.astype(np.int16), turned(*self.world) @ AFFINE)
        start, end = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", self.axes))
        stored = ras.as_reoriented(nibabel.orientations.ornt_transform(start, end))
        affine = stored.affine.copy()
        affine[:3] *= self.per_mm
        values = (np.asarray(stored.dataobj) - self.intercept) / self.slope
        assert np.array_equal(values, values.astype(self.dtype))
        values = values.reshape(values.shape + (1,) * self.more_axes)
        header = kind.header_class(endianness=">" if self.dtype[0] == ">" else "<")
        header.set_data_dtype(self.dtype)
        image = kind(values.astype(self.dtype), affine, header)
        image.header.set_xyzt_units(self.unit)
        image.set_qform(affine if self.codes[0] else None, self.codes[0])
        image.set_sform(affine if self.codes[1] else None, self.codes[1])
        image.header.set_slope_inter(self.slope, self.intercept)
        path = folder / f"scan{self.suffix}"
        image.to_filename(path)
        found = nibabel.load(path)
        assert np.array_equal(np.asarray(found.dataobj).ravel(), np.asarray(stored.dataobj).ravel())
        assert nibabel.aff2axcodes(found.affine) == tuple(self.axes)
        return path


PLAIN = Form("plain")
FORMS = (
    *(Form(axes, axes=axes) for axes in ("LPS", "LAS", "RPI", "PIR", "SAL", "ASR", "IRP")),
    *(Form(f"oblique {axis}", world=(axis, degrees)) for axis, degrees in enumerate((20, -35, 44))),
    Form("oblique and flipped", axes="LPI", world=(2, 30)),
    *(Form(unit, unit=unit) for unit in ("meter", "micron", "unknown")),
    *(Form(dtype, dtype=dtype) for dtype in ("<u1", "<i1", "<u2", "<i4", "<u4", "<i8", "<f4", "<f8")),
    Form("slope", slope=0.5),
    Form("slope and intercept", dtype="<i4", slope=0.25, intercept=-17.0),
    Form("big-endian", dtype=">i2"),
    Form("big-endian float, axes swapped", dtype=">f4", axes="SPL"),
    Form("NIfTI-2", second=True),
    Form("NIfTI-2, big-endian, metres", second=True, dtype=">i4", unit="meter"),
    Form("4D", more_axes=1),
    Form("5D", more_axes=2),
    Form("not compressed", suffix=".nii"),
    Form("qform alone", codes=(1, 0), axes="LPS"),
    Form("sform alone", codes=(0, 2), axes="LPS"),
    Form("capitals", suffix=".NII.GZ"),
)


def predicted(predictor: Predictor, form: Form, folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The mask with its axes from left to right, back to front and foot to head, and its affine in mm, by nibabel."""
    report = predict_path(predictor, form.write(folder), folder / "mask.nii.gz")
    assert report.failures == ()
    mask = nibabel.as_closest_canonical(nibabel.load(folder / "mask.nii.gz"))
    affine = mask.affine.copy()
    affine[:3] /= form.per_mm
    return np.asarray(mask.dataobj), affine


@pytest.fixture(scope="module", params=[None, (1.5, 1.5, 1.5)], ids=["own spacing", "resampled"])
def expected(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Predictor, NDArray[np.uint8]]:
    folder = tmp_path_factory.mktemp("forms")
    predictor = Predictor.open(make_bundle(folder / "model", request.param), PredictOptions(precision="float32"))
    mask, affine = predicted(predictor, replace(PLAIN, suffix=".nii"), folder)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert mask.shape == SHAPE
    return predictor, mask


def test_the_mask_depends_on_the_intensities(expected: tuple[Predictor, NDArray[np.uint8]]) -> None:
    """Else equal masks would prove nothing."""
    _, mask = expected
    shares = np.bincount(mask.ravel(), minlength=3) / mask.size
    assert np.sort(shares)[-2] > 0.05
    inside = np.zeros(SHAPE, bool)
    inside[6:15, 5:12, 4:10] = True
    rates = [np.bincount(mask[part], minlength=3) / part.sum() for part in (inside, ~inside)]
    assert abs(rates[0] - rates[1]).max() > 0.05


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_the_mask_is_the_same(form: Form, expected: tuple[Predictor, NDArray[np.uint8]], tmp_path: Path) -> None:
    predictor, plain = expected
    mask, affine = predicted(predictor, form, tmp_path)
    np.testing.assert_allclose(affine, turned(*form.world) @ AFFINE, atol=2e-4)
    np.testing.assert_array_equal(mask, plain)
