"""Synthetic scans of several sites for demonstrations, tests and pretraining; they contain no patient data.

A body with a layer of fat contains a large organ with a core on its right side and a node on its left. Thresholding
cannot segment them: the core has nearly the intensity of the soft tissue around the organ, the node has nearly that of
the organ, and an unlabelled pouch and bowel-like loops resemble both. Size, position, outline and intensities vary
between cases; contrast, shading, noise, resolution, spacing, orientation and number format vary between sites.

``common.imaging.phantoms.bent_tube`` draws the other anatomy.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import OutputError
from common.imaging.geometry import Grid
from common.imaging.io.nifti import write_image
from common.imaging.phantoms.bent_tube import BENT_TUBE_LABELS, draw_bent_tube
from common.imaging.scanner_shift import apply_scanner_shift, smooth_field
from common.imaging.volume import Source
from common.plan.base import Axes3, Spacing
from common.plan.scanner_shift import ScannerShift

Anatomy = Literal["body", "bent_tube"]

PHANTOM_LABELS = {1: "organ", 2: "core", 3: "node"}

USUAL_SPACING_MM = 2.0
"""Default voxel size; ``shape`` refers to it, and sites with other voxels cover the same field of view."""
_FULL_SCALE = 1000.0

_TISSUES = {
    "air": 0.0,
    "fat": 0.82,
    "muscle": 0.36,
    "organ": 0.56,
    "core": 0.33,
    "node": 0.53,
    "pouch": 0.53,
    "bowel": 0.30,
    "bone": 0.66,
    "cord": 0.14,
    "vessel": 0.92,
}


@dataclass(frozen=True)
class PhantomSite:
    """Scanner and file format of one synthetic hospital."""

    name: str
    spacing: Spacing
    orientation: str
    image_type: np.dtype[Any]
    label_type: np.dtype[Any]
    shift: ScannerShift


_SITES: tuple[tuple[Spacing, str, str, str, ScannerShift], ...] = (
    ((2.0, 2.0, 2.0), "RAS", "f4", "u1", ScannerShift(noise=0.02, bias_field=0.05, resolution_mm=2.6)),
    (
        (1.8, 1.8, 2.2),
        "LPS",
        "i2",
        "u1",
        ScannerShift(gamma=1.5, bias_field=0.35, noise=0.03, resolution_mm=2.8, scale=0.4),
    ),
    ((2.2, 2.2, 2.0), "LAS", "u1", "f4", ScannerShift(gamma=0.8, noise=0.055, resolution_mm=4.0, scale=0.2)),
    (
        (1.9, 1.9, 2.6),
        "RAS",
        "i2",
        "i2",
        ScannerShift(gamma=0.65, bias_field=0.2, noise=0.05, resolution_mm=3.2, scale=5, offset=400),
    ),
)


def phantom_labels(anatomy: Anatomy) -> dict[int, str]:
    """Return the labels of an anatomy: value -> name."""
    return BENT_TUBE_LABELS if anatomy == "bent_tube" else PHANTOM_LABELS


def phantom_sites(count: int, seed: int, spacing_mm: float = USUAL_SPACING_MM) -> list[PhantomSite]:
    """Return the scanners of ``count`` sites: four fixed ones, then variations of them drawn from ``seed``.

    Voxel sizes and resolutions scale with ``spacing_mm``.
    """
    sites = []
    finer = spacing_mm / USUAL_SPACING_MM
    for index in range(count):
        spacing, orientation, image_type, label_type, shift = _SITES[index % len(_SITES)]
        if index >= len(_SITES):
            generator = np.random.default_rng([seed, 1, index])
            shift = shift.model_copy(
                update={
                    "gamma": round(shift.gamma * float(generator.uniform(0.7, 1.4)), 3),
                    "bias_field": round(float(generator.uniform(0.0, 0.4)), 3),
                    "noise": round(float(generator.uniform(0.02, 0.08)), 3),
                }
            )
        types = np.dtype(image_type), np.dtype(label_type)
        if finer != 1:
            x, y, z = (round(step * finer, 3) for step in spacing)
            spacing = (x, y, z)
            shift = shift.model_copy(update={"resolution_mm": round((shift.resolution_mm or 0) * finer, 3)})
        sites.append(PhantomSite(f"phantom-site-{_letters(index)}", spacing, orientation, *types, shift))
    return sites


def write_phantom_dataset(
    root: Path,
    cases_per_site: Sequence[int],
    seed: int,
    shape: Axes3 = (40, 48, 40),
    anatomy: Anatomy = "body",
    spacing_mm: float = USUAL_SPACING_MM,
) -> Path:
    """Write a synthetic dataset of several sites in the Decathlon layout, with ``sites.csv`` (case, site).

    Parameters
    ----------
    root
        Folder to create; it appears only once it is complete.
    cases_per_site
        Number of cases of each site.
    seed
        The same seed produces the same voxels.
    shape
        Voxels of a case at ``spacing_mm``; sites with other spacings cover the same field of view.
    anatomy
        Anatomy that the scans show.
    spacing_mm
        Approximate voxel size.

    Returns
    -------
    Path
        ``root``.

    Raises
    ------
    OutputError
        If the folder exists and is not empty, or cannot be written.
    """
    root = Path(root)
    partial = root.with_name(f".{root.name}.{secrets.token_hex(6)}.part")
    try:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise OutputError(f"{root}: exists already; remove it or choose another folder for the phantoms")
        root.parent.mkdir(parents=True, exist_ok=True)
        (partial / "imagesTr").mkdir(parents=True)
        (partial / "labelsTr").mkdir()
        sites = phantom_sites(len(cases_per_site), seed, spacing_mm)
        field_of_view = (shape[0] * spacing_mm, shape[1] * spacing_mm, shape[2] * spacing_mm)
        _write_contents(partial, sites, cases_per_site, seed, anatomy, field_of_view)
        partial.replace(root)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def draw_phantom(shape: Axes3, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw one synthetic patient as an ideal scanner would image it.

    Returns
    -------
    tuple[NDArray[np.float32], NDArray[np.uint8]]
        Intensities from 0 to about 1, float32 (x, y, z) in RAS+, and labels (``PHANTOM_LABELS``), uint8.
    """
    space = _body_coordinates(shape, generator)
    tissue = {name: mean + float(generator.normal(0, 0.02)) for name, mean in _TISSUES.items()}
    image = np.zeros(shape, dtype=np.float32)
    label = np.zeros(shape, dtype=np.uint8)

    body = _ellipsoid(space, (0, 0, 0), (0.86, 0.8, 3.0))
    inside = body < 0.8
    image[body < 1] = tissue["fat"]
    image[inside] = tissue["muscle"]
    _draw_midline(image, space, tissue, generator)

    loop = np.zeros(shape, dtype=bool)
    for _ in range(3):
        place = (generator.uniform(-0.3, 0.05), generator.uniform(0.15, 0.5), generator.uniform(-0.8, 0.8))
        loop |= _ellipsoid(space, place, (0.16, 0.13, 0.2)) < 1
    image[loop & inside] = tissue["bowel"]
    pouch = _ellipsoid(space, _near((-0.42, 0.28, 0.3), 0.05, generator), _about((0.22, 0.2, 0.34), generator)) < 1
    image[pouch & inside] = tissue["pouch"]

    node = (
        _ellipsoid(space, _near((-0.42, -0.24, 0.0), 0.05, generator), _about((0.23, 0.22, 0.38), generator)) < 1
    ) & inside
    image[node] = tissue["node"]
    label[node] = 3

    middle = _near((0.4, 0.06, 0.05), 0.04, generator)
    organ = (_ellipsoid(space, middle, _about((0.4, 0.5, 0.66), generator)) < 1) & inside
    image[organ] = tissue["organ"]
    label[organ] = 1
    for _ in range(2):
        image[_tube(space, (middle[0], middle[1]), 0.045, generator) & organ] = tissue["vessel"]
    centre = _near(middle, 0.14, generator)
    core = (_ellipsoid(space, centre, _about((0.22, 0.22, 0.3), generator)) < 1) & organ
    image[core] = tissue["core"]
    label[core] = 2

    texture = smooth_field(shape, generator) * 0.03
    image[body < 1] += texture[body < 1]
    return image, label


def _write_contents(
    folder: Path,
    sites: Sequence[PhantomSite],
    cases_per_site: Sequence[int],
    seed: int,
    anatomy: Anatomy,
    field_of_view: Spacing,
) -> None:
    rows: list[tuple[str, str]] = []
    for site, count in zip(sites, cases_per_site, strict=True):
        for _ in range(count):
            name = f"phantom_{len(rows) + 1:03d}"
            _write_case(folder, name, site, anatomy, field_of_view, [seed, 2, len(rows)])
            rows.append((name, site.name))
    with (folder / "sites.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("case", "site"), *rows])
    description = {
        "name": "PHANTOM",
        "description": "Synthetic volumes for demonstrations and tests. No patient data, no clinical meaning.",
        "tensorImageSize": "3D",
        "modality": {"0": "synthetic"},
        "labels": {"0": "background"} | {str(value): name for value, name in phantom_labels(anatomy).items()},
        "numTraining": len(rows),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name, _ in rows],
        "sites": {site.name: _described(site) for site in sites},
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _write_case(
    folder: Path, name: str, site: PhantomSite, anatomy: Anatomy, field_of_view: Spacing, seed: list[int]
) -> None:
    generator = np.random.default_rng(seed)
    x, y, z = (max(1, round(mm / s)) for mm, s in zip(field_of_view, site.spacing, strict=True))
    if anatomy == "bent_tube":
        ideal, label = draw_bent_tube((x, y, z), site.spacing, generator)
    else:
        ideal, label = draw_phantom((x, y, z), generator)
    image = apply_scanner_shift(
        ideal[None] * np.float32(_FULL_SCALE), site.spacing, site.shift, int(generator.integers(2**31))
    )[0]
    affine = np.diag([*site.spacing, 1.0])
    affine[:3, 3] = np.round(generator.normal(-40, 10, 3), 1)
    source = Source(Grid((x, y, z), affine).oriented(site.orientation))
    write_image(folder / "imagesTr" / f"{name}.nii.gz", image, source, site.image_type)
    write_image(folder / "labelsTr" / f"{name}.nii.gz", label, source, site.label_type)


def _described(site: PhantomSite) -> dict[str, Any]:
    return {
        "spacing_mm": site.spacing,
        "orientation": site.orientation,
        "stored_as": str(site.image_type),
        "scanner": site.shift.model_dump(exclude_defaults=True),
    }


def _draw_midline(
    image: NDArray[np.float32],
    space: NDArray[np.float32],
    tissue: dict[str, float],
    generator: np.random.Generator,
) -> None:
    """Draw the spine, the cord and the two large vessels, which are in every patient and never labelled."""
    image[_tube(space, (0.0, -0.42), 0.15, generator) | _tube(space, (0.0, -0.64), 0.07, generator)] = tissue["bone"]
    image[_tube(space, (0.0, -0.58), 0.055, generator)] = tissue["cord"]
    image[_tube(space, (-0.09, -0.16), 0.075, generator)] = tissue["vessel"]
    image[_tube(space, (0.1, -0.16), 0.065, generator)] = tissue["vessel"]


def _body_coordinates(shape: Axes3, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return body coordinates (3, x, y, z) from -1 to 1 across the volume, rotated, scaled, shifted and bent."""
    axes = [(2 * np.arange(size) + 1) / size - 1 for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    turn = float(generator.normal(0, 0.06))
    turned = (np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x, z)
    scale = generator.uniform(0.98, 1.14, 3)
    shift = generator.uniform(-0.05, 0.05, 3) * (1, 1, 3)
    bend = [0.07 * smooth_field(shape, generator) for _ in range(3)]
    return np.stack([turned[i] * scale[i] + shift[i] + bend[i] for i in range(3)]).astype(np.float32)


def _ellipsoid(space: NDArray[np.float32], centre: Sequence[float], radii: Sequence[float]) -> NDArray[np.float32]:
    """Return the squared distance from the centre in units of the radii: below 1 inside."""
    distance = sum(((space[i] - centre[i]) / radii[i]) ** 2 for i in range(3))
    return np.asarray(distance, dtype=np.float32)


def _tube(
    space: NDArray[np.float32], centre: tuple[float, float], radius: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return the mask of a slightly wavy tube along z."""
    phase = generator.uniform(0, 2 * np.pi, 2)
    x = space[0] - centre[0] - 0.03 * np.sin(2 * space[2] + phase[0])
    y = space[1] - centre[1] - 0.02 * np.sin(2 * space[2] + phase[1])
    return np.asarray(x**2 + y**2 < radius**2)


def _near(point: Sequence[float], spread: float, generator: np.random.Generator) -> list[float]:
    return [value + float(generator.uniform(-spread, spread)) for value in point]


def _about(sizes: Sequence[float], generator: np.random.Generator) -> list[float]:
    return [size * float(generator.uniform(0.88, 1.15)) for size in sizes]


def _letters(index: int) -> str:
    """Return letters as in spreadsheet columns: a, b, ..., z, aa, ab, ..."""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)
