"""A synthetic hippocampus in T1 MRI: a bent tube in two parts within grey matter, white matter and fluid.

Sizes and positions are drawn around textbook anatomy of the adult hippocampus: about 40 mm long from front to back,
thicker in its anterior third to half (the head), tapering towards the back, bowed outwards and upwards, lower in front.
White matter and a dark fluid-filled horn surround it, with grey matter in front. Nothing was measured on or fitted to a
dataset. The ranges are deliberately wide, as in the domain randomisation of Billot et al. (2023, SynthSeg), so that a
network has to recognise the structure by its shape, position and surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from common.imaging.scanner_shift import smooth_field
from common.plan.base import Axes3, Spacing

BENT_TUBE_LABELS = {1: "anterior", 2: "posterior"}

_POINTS = 48  # balls along the centre line, less than 1 mm apart


@dataclass(frozen=True)
class _Tissues:
    """Tissue intensities; in T1 fluid is dark, grey matter intermediate, white matter bright."""

    fluid: float
    grey: float
    white: float


def draw_bent_tube(
    shape: Axes3, spacing: Spacing, generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Draw one synthetic patient as an ideal scanner would image it; the side, left or right, is random.

    Parameters
    ----------
    shape
        Voxels along x, y, z.
    spacing
        Voxel size in mm; the tube is about 40 mm long regardless of the shape.
    generator
        Source of all randomness.

    Returns
    -------
    tuple[NDArray[np.float32], NDArray[np.uint8]]
        Intensities from 0 to about 1, float32 (x, y, z) in RAS+, and labels (``BENT_TUBE_LABELS``), uint8.
    """
    space = _millimetres(shape, spacing, generator)
    distance, along = _tube(space, generator)
    border = generator.uniform(0.0, 0.4)
    label = np.where(distance < 1, np.where(along > border, 1, 2), 0).astype(np.uint8)

    tissues = _Tissues(generator.uniform(0.02, 0.3), generator.uniform(0.42, 0.62), generator.uniform(0.72, 1.0))
    image = _surroundings(shape, spacing, tissues, generator)
    _draw_shell(image, space, distance, tissues, generator)
    inside = label > 0
    image[inside] = tissues.grey + generator.normal(0, 0.03)
    image[label == 1] += generator.normal(0, 0.02)
    image += _blurred_noise(shape, spacing, generator.uniform(0.8, 2.0), generator) * generator.uniform(0.0, 0.05)
    return np.clip(image, 0, None).astype(np.float32), label


def _millimetres(shape: Axes3, spacing: Spacing, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return voxel positions (3, x, y, z) in mm from near the centre, shifted, bent and rotated."""
    axes = [(np.arange(size) - (size - 1) / 2) * step for size, step in zip(shape, spacing, strict=True)]
    place = np.stack(np.meshgrid(*axes, indexing="ij"))
    for axis in range(3):
        place[axis] += 1.8 * smooth_field(shape, generator) + 0.6 * _blurred_noise(shape, spacing, 4.0, generator)
    place -= generator.normal(0, 1.8, 3)[:, None, None, None]
    turned = np.einsum("ij,jxyz->ixyz", _rotation(generator.normal(0, 8, 3)), place)
    return np.asarray(turned, dtype=np.float32)


def _rotation(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation about x, then y, then z."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        turned = turn @ turned
    return turned


def _tube(
    space: NDArray[np.float32], generator: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the distance from the centre line in tube radii, and the position along it from -1 (back) to 1 (front)."""
    side = generator.choice((-1.0, 1.0))
    length, slope = generator.uniform(36, 46), np.radians(generator.normal(22, 7))
    outwards, upwards = side * generator.uniform(1.0, 5.0), generator.uniform(0.0, 3.0)
    width, height = generator.uniform(4.2, 5.8), generator.uniform(3.4, 4.8)
    head, tail = generator.uniform(1.15, 1.6), generator.uniform(0.55, 0.85)
    line = np.linspace(-1, 1, _POINTS)
    thickness = np.interp(line, (-1, -0.5, 0.0, 0.45, 0.85, 1), (tail, 0.9, 1.0, head, head, 0.75 * head))
    nearest = np.full(space.shape[1:], np.inf, dtype=np.float32)
    along = np.zeros(space.shape[1:], dtype=np.float32)
    for t, thick in zip(line, thickness, strict=True):
        # The balls at both ends reach beyond the line's ends by their radius.
        reach = (length / 2 - height) * t
        centre = (
            -outwards * (t * t - 1 / 3) - side * 1.0 * t,
            reach * np.cos(slope),
            upwards * (t * t - 1 / 3) - reach * np.sin(slope),
        )
        radii = (width * thick, height * thick, height * thick)
        squared = sum(((space[i] - centre[i]) / radii[i]) ** 2 for i in range(3))
        nearer = squared < nearest
        nearest[nearer] = squared[nearer]
        along[nearer] = t
    return np.sqrt(nearest), along


def _surroundings(
    shape: Axes3, spacing: Spacing, tissues: _Tissues, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Fill the volume with random patches of grey matter, white matter and fluid."""
    kinds = (tissues.white, tissues.grey, tissues.white, tissues.grey, tissues.fluid)
    fields = [_blurred_noise(shape, spacing, generator.uniform(2.0, 4.5), generator) for _ in kinds]
    fields[-1] -= generator.uniform(0.0, 0.8)
    image = np.zeros(shape, dtype=np.float32)
    winner = np.argmax(fields, axis=0)
    for index, kind in enumerate(kinds):
        image[winner == index] = kind + generator.normal(0, 0.05)
    return image


def _draw_shell(
    image: NDArray[np.float32],
    space: NDArray[np.float32],
    distance: NDArray[np.float32],
    tissues: _Tissues,
    generator: np.random.Generator,
) -> None:
    """Draw the tissue around the tube: mostly white matter, some fluid, and grey matter in front."""
    shape: Axes3 = (image.shape[0], image.shape[1], image.shape[2])
    patches = _blurred_noise(shape, (1.0, 1.0, 1.0), 4.0, generator)
    near = distance < generator.uniform(1.2, 1.7)
    image[near & (patches > -0.6)] = tissues.white + generator.normal(0, 0.04)
    # The horn lies over the tube and on its outer side.
    image[near & (patches + 0.06 * space[2] > generator.uniform(0.4, 1.2))] = tissues.fluid + generator.normal(0, 0.03)
    neighbour = generator.normal((0, 17, 8), (3, 2, 2))
    radii = generator.uniform(5, 8, 3)
    blob = sum(((space[i] - neighbour[i]) / radii[i]) ** 2 for i in range(3)) < 1
    image[blob] = tissues.grey + generator.normal(0, 0.04)


def _blurred_noise(
    shape: Axes3, spacing: Spacing, width_mm: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return Gaussian noise blurred to a width in mm, with mean about 0 and standard deviation 1."""
    noise = generator.standard_normal(shape, dtype=np.float32)
    blurred = ndimage.gaussian_filter(noise, [width_mm / step for step in spacing], mode="reflect")
    return np.asarray(blurred / blurred.std(), dtype=np.float32)
