"""Sliding-window prediction of volumes that are larger than a patch.

Windows overlap. Every voxel's logits are the average over the windows that contain it, weighted by a Gaussian around
each window's centre (Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", 2021). Windows move along z, then y, then x. Once the windows at one x are done, the planes before the
next x are final and are returned. Sums are therefore held only for as many planes as a patch is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, combinations, islice, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.imaging.threads import CountProgress
from common.plan.base import Axes3
from common.system.devices import autocast_dtype, keep_freed_memory, memory_format

GAUSSIAN_SIGMA = 0.125
"""Standard deviation of the window weights, as a fraction of the patch along each axis."""

SMALLEST_WEIGHT = 1e-3
"""Floor of the window weights, whose maximum is about 1, so that a corner in only one window keeps its precision."""

_GPU_BATCH_VOXELS = 2_000_000


def gaussian_weights(patch_size: Axes3) -> Tensor:
    """Return a window's voxel weights (x, y, z) float32: a product of three Gaussians, clamped to the floor."""
    axes = []
    for size in patch_size:
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        axes.append(torch.exp(-0.5 * (distance / (GAUSSIAN_SIGMA * size)) ** 2))
    weights = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return weights.clamp_(min=SMALLEST_WEIGHT)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Return the first voxels of the windows along one axis: equal steps from 0, the last window flush with the end.

    Parameters
    ----------
    size
        Voxels of the volume, at least ``patch``.
    patch
        Voxels of the window.
    overlap
        Fraction of a window that the next one also covers, from 0 to less than 1.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is a fraction from 0 to less than 1, not {overlap}")
    step = max(1, int(patch * (1 - overlap)))
    return [*range(0, size - patch, step), size - patch]


@dataclass(frozen=True)
class WindowOptions:
    """How windows are placed, mirrored and computed.

    Attributes
    ----------
    overlap
        Fraction that neighbouring windows share along each axis, from 0 to less than 1.
    mirror_axes
        Spatial axes (0, 1, 2) for test-time mirroring; logits are averaged over all combinations, so n axes take 2**n
        times as long.
    device
        Device that the model runs on; None means the CPU.
    precision
        Precision of the model, see :func:`common.system.devices.autocast_dtype`. Sums are always float32.
    batch_size
        Windows per forward pass; None means 1 on a CPU, where larger batches exceed the caches, and about two million
        voxels on a GPU.
    """

    overlap: float = 0.5
    mirror_axes: tuple[int, ...] = ()
    device: torch.device | None = None
    precision: str = "auto"
    batch_size: int | None = None


DEFAULT_OPTIONS = WindowOptions()


def sliding_window(
    model: nn.Module,
    image: NDArray[Any] | Tensor,
    patch_size: Axes3,
    options: WindowOptions = DEFAULT_OPTIONS,
    *,
    progress: CountProgress | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Predict logits for every voxel of an image.

    Parameters
    ----------
    model
        Maps (batch, channels, x, y, z) to (batch, classes, x, y, z). It is moved to the device and its fastest memory
        layout, runs in evaluation mode, and gets its previous mode back afterwards.
    image
        (channels, x, y, z), preprocessed; may be a read-only memory map. An axis shorter than the patch is padded with
        zeros on both sides.
    patch_size
        Voxels of a window along x, y, z.
    options
        How windows are placed, mirrored and computed.
    progress
        Called with (windows done, total windows) after every forward pass.
    out
        (classes, x, y, z) float32 array to fill, for example a memory map for scores larger than memory.

    Returns
    -------
    NDArray[np.float32]
        (classes, x, y, z) float32: weighted averages of logits (not of probabilities).

    Raises
    ------
    ValueError
        If the image is not four-dimensional, or the overlap is out of range.
    """
    windows = _Windows.over(image, patch_size, options.overlap)
    forward = _Forward(model, options)
    result = np.empty(0, dtype=np.float32) if out is None else out
    for planes, sums in _slabs(windows, forward, options.batch_size, progress):
        if result.size == 0:
            result = np.empty((len(sums), *windows.image.shape[1:]), dtype=np.float32)
        logits = sums / windows.summed_weights(planes).to(sums.device)
        source, target = windows.inside(planes)
        result[:, target] = logits[:, *source].cpu().numpy()
    return result


def predict_labels(
    model: nn.Module,
    image: NDArray[Any] | Tensor,
    patch_size: Axes3,
    options: WindowOptions = DEFAULT_OPTIONS,
    *,
    progress: CountProgress | None = None,
) -> NDArray[np.uint8]:
    """Predict the class of every voxel without holding the scores of the whole volume.

    The result is the class with the highest logit of :func:`sliding_window`, which takes the same arguments. Scores
    take (classes + 1) * patch x * y * z floats, independent of the volume's length along x.

    Returns
    -------
    NDArray[np.uint8]
        (x, y, z) uint8.

    Raises
    ------
    ValueError
        As for :func:`sliding_window`, and if the model has more than 256 classes.
    """
    windows = _Windows.over(image, patch_size, options.overlap)
    forward = _Forward(model, options)
    labels = np.empty(windows.image.shape[1:], dtype=np.uint8)
    for planes, sums in _slabs(windows, forward, options.batch_size, progress):
        if len(sums) > 256:
            raise ValueError(f"{len(sums)} classes do not fit a uint8 label map: 256 at most")
        source, target = windows.inside(planes)
        # All classes of a voxel have the same summed weight, so dividing by it would not change the order.
        labels[target] = _highest_class(sums[:, *source]).cpu().numpy()
    return labels


@dataclass(frozen=True, eq=False)
class _Windows:
    """Positions of the windows on the image, padded to at least one patch.

    Attributes
    ----------
    image
        (channels, x, y, z).
    patch
        Voxels of a window along x, y, z.
    padded
        Voxels of the padded image.
    before
        Voxels of padding in front of the image along each axis.
    starts
        First voxels of the windows along each axis, in padded voxels.
    """

    image: NDArray[Any]
    patch: Axes3
    padded: Axes3
    before: Axes3
    starts: tuple[list[int], list[int], list[int]]

    @classmethod
    def over(cls, image: NDArray[Any] | Tensor, patch: Axes3, overlap: float) -> _Windows:
        array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        if array.ndim != 4:
            raise ValueError(f"an image has the axes (channels, x, y, z), not the shape {array.shape}")
        x, y, z = (max(size, edge) for size, edge in zip(array.shape[1:], patch, strict=True))
        before_x, before_y, before_z = ((p - s) // 2 for p, s in zip((x, y, z), array.shape[1:], strict=True))
        starts_x, starts_y, starts_z = (window_starts(p, e, overlap) for p, e in zip((x, y, z), patch, strict=True))
        return cls(array, patch, (x, y, z), (before_x, before_y, before_z), (starts_x, starts_y, starts_z))

    @property
    def count(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])

    @cached_property
    def column_weights(self) -> Tensor:
        """Sum of the weights (patch x, y, z) of all windows at one x."""
        weights = gaussian_weights(self.patch)
        summed = torch.zeros((self.patch[0], *self.padded[1:]))
        for y, z in product(*self.starts[1:]):
            summed[:, y : y + self.patch[1], z : z + self.patch[2]] += weights
        return summed

    def summed_weights(self, planes: slice) -> Tensor:
        """Sum the weights (planes, y, z) of all windows that contain these planes."""
        summed = torch.zeros((planes.stop - planes.start, *self.padded[1:]))
        for start in self.starts[0]:
            first, last = max(start, planes.start), min(start + self.patch[0], planes.stop)
            if first < last:
                summed[first - planes.start : last - planes.start] += self.column_weights[first - start : last - start]
        return summed

    def inside(self, planes: slice) -> tuple[tuple[slice, slice, slice], slice]:
        """Return the part of a slab of planes without padding, and the planes of the image that it covers."""
        first = max(planes.start, self.before[0])
        last = max(first, min(planes.stop, self.before[0] + self.image.shape[1]))
        y, z = (slice(b, b + s) for b, s in zip(self.before[1:], self.image.shape[2:], strict=True))
        source = (slice(first - planes.start, last - planes.start), y, z)
        return source, slice(first - self.before[0], last - self.before[0])

    def batch(self, corners: Sequence[Axes3], pin_memory: bool) -> Tensor:
        """Copy the windows at these corners, zero outside the image: (batch, channels, *patch) float32."""
        batch = torch.zeros((len(corners), len(self.image), *self.patch), pin_memory=pin_memory)
        for window, corner in zip(batch.numpy(), corners, strict=True):
            sources, targets = [], []
            for start, edge, before, size in zip(corner, self.patch, self.before, self.image.shape[1:], strict=True):
                first, last = max(start - before, 0), min(start - before + edge, size)
                sources.append(slice(first, last))
                targets.append(slice(first - start + before, last - start + before))
            window[:, *targets] = self.image[:, *sources]
        return batch


class _Forward:
    """The model in evaluation mode on its device, averaged over mirrored windows."""

    def __init__(self, model: nn.Module, options: WindowOptions) -> None:
        self.device = options.device or torch.device("cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.autocast = autocast_dtype(self.device, options.precision)
        # For single windows in float32, oneDNN is faster on planar data; for batches or bfloat16 it is not.
        planar = self.device.type == "cpu" and self.autocast is None
        self.layout = torch.contiguous_format if planar else memory_format(self.device)
        self.model = model.to(device=self.device)
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]  # -- not in torch's hints
        subsets = (combinations(options.mirror_axes, count) for count in range(1, len(options.mirror_axes) + 1))
        # Axes of a batch: the first two are batch and channel.
        self.mirrored = [[axis + 2 for axis in subset] for subset in chain.from_iterable(subsets)]

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """Compute float32 logits (batch, classes, x, y, z) on the device for windows on the CPU."""
        batch = batch.to(self.device, non_blocking=True).to(memory_format=self.layout)
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, dtype=self.autocast or torch.bfloat16, enabled=enabled):
            logits: Tensor = self.model(batch).float()
            for axes in self.mirrored:
                logits += self.model(batch.flip(axes)).flip(axes)
        return logits / (1 + len(self.mirrored)) if self.mirrored else logits


def _slabs(
    windows: _Windows, forward: _Forward, batch_size: int | None, progress: CountProgress | None
) -> Iterator[tuple[slice, Tensor]]:
    """Run all windows and yield finished planes in order, with their weighted sums of logits.

    The sums (classes, planes, y, z) include padding and are a view that the next step overwrites.
    """
    size = batch_size or _automatic_batch_size(forward.device, windows.patch)
    was_training = forward.model.training
    forward.model.eval()
    sums = torch.empty(0)
    done = 0
    depth = windows.patch[0]
    starts_x = windows.starts[0]
    try:
        for start, following in zip(starts_x, [*starts_x[1:], windows.padded[0]], strict=True):
            columns = iter(product(*windows.starts[1:]))
            while corners := list(islice(columns, size)):
                sums = _add_windows(sums, windows, forward, [(start, y, z) for y, z in corners])
                done += len(corners)
                if progress is not None:
                    progress(done, windows.count)
            finished = following - start
            yield slice(start, following), sums[:, :finished]
            # Shift in pieces that do not overlap their source, which avoids a second array.
            for plane in range(0, depth - finished, finished):
                piece = sums[:, plane + finished : plane + 2 * finished]
                sums[:, plane : plane + piece.shape[1]] = piece
            sums[:, depth - finished :] = 0
    finally:
        forward.model.train(was_training)


def _add_windows(sums: Tensor, windows: _Windows, forward: _Forward, corners: Sequence[Axes3]) -> Tensor:
    """Add the weighted logits of windows at one x; the first call allocates the sums.

    This is a separate function so that the logits are freed before the next forward pass.
    """
    logits = forward(windows.batch(corners, forward.device.type == "cuda"))
    if sums.numel() == 0:
        sums = _new_sums(logits, windows)
    weights = _weights_on(sums.device, windows.patch)
    _, height, width = windows.patch
    for (_, y, z), scores in zip(corners, logits.to(sums.device), strict=True):
        sums[:, :, y : y + height, z : z + width].addcmul_(scores, weights)
    return sums


def _highest_class(scores: Tensor) -> Tensor:
    """Return the class (x, y, z) uint8 with the highest score of (classes, x, y, z); ties go to the first.

    Comparing class by class is many times faster than ``argmax`` along the axis with the largest stride.
    """
    best = scores[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for value, score in enumerate(scores[1:], start=1):
        labels.masked_fill_(score > best, value)
        torch.maximum(best, score, out=best)
    return labels


@lru_cache(maxsize=4)
def _weights_on(device: torch.device, patch: Axes3) -> Tensor:
    return gaussian_weights(patch).to(device)


def _new_sums(logits: Tensor, windows: _Windows) -> Tensor:
    """Allocate zeros (classes, patch x, y, z) on the model's device if they fit with room to spare, else on the CPU."""
    shape = (logits.shape[1], windows.patch[0], *windows.padded[1:])
    device = logits.device
    if device.type == "cuda":
        needed = 4 * int(np.prod(shape))
        free, _ = torch.cuda.mem_get_info(device)
        # Leave room for the quotients or class indices and for the activations of the next windows.
        if 3 * needed > free:
            device = torch.device("cpu")
    return torch.zeros(shape, device=device)


def _automatic_batch_size(device: torch.device, patch: Axes3) -> int:
    return 1 if device.type == "cpu" else max(1, _GPU_BATCH_VOXELS // int(np.prod(patch)))
