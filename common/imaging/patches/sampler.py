"""Sampling of training patches.

A batch is a pure function of the sampler's seed and the step. It does not depend on the number of threads, the order of
preparation, or interruptions of training.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import floor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.augmentation import augment, flip
from common.imaging.patches.cropping import cut
from common.plan.augmentation import AugmentationPlan
from common.plan.base import Axes3


@dataclass(frozen=True)
class Batch:
    """Patches of one training step.

    Attributes
    ----------
    image
        (batch, channels, x, y, z) float32.
    label
        (batch, x, y, z) uint8.
    cases
        Name of the case that each patch comes from.
    """

    image: Tensor
    label: Tensor
    cases: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory, which allows asynchronous copies to a GPU."""
        return Batch(self.image.pin_memory(), self.label.pin_memory(), self.cases)


class BatchSource(Protocol):
    """A source of batches; must be thread-safe."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; it must depend only on the source and the step."""


class PatchCutter:
    """Cuts single patches out of cases and augments them.

    A volume smaller than the patch is padded with zeros and placed at random. Rotation and scaling are skipped if the
    patch would lose its foreground.

    Parameters
    ----------
    patch_size
        Voxels along x, y, z.
    augmentation
        None leaves patches as they are.
    mirror_axes
        Axes along which the anatomy may be flipped.
    """

    def __init__(self, patch_size: Axes3, augmentation: AugmentationPlan | None, mirror_axes: Collection[int]) -> None:
        self._patch_size = patch_size
        self._augmentation = augmentation
        self._straight = augmentation and augmentation.model_copy(update={"rotation": 0.0, "scaling": 0.0})
        self._mirror_axes = tuple(mirror_axes)

    def patch(self, case: CachedCase, on_foreground: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cut one patch out of a case.

        Parameters
        ----------
        case
            The case.
        on_foreground
            Centre the patch on a foreground voxel, as far as the volume's border allows. The voxel's label is drawn
            uniformly from those that the case has.
        random
            Source of all randomness.

        Returns
        -------
        tuple[Tensor, Tensor]
            Image (channels, x, y, z) float32 and label (x, y, z) uint8.
        """
        start, has_foreground = self._start(case, on_foreground, random)
        seed = int(random.integers(2**63))
        image, label = self._cut(case, start, self._augmentation, seed)
        if has_foreground and not label.any():
            # Near the border of a volume a rotation or scaling can push the chosen voxel out of the patch.
            image, label = self._cut(case, start, self._straight, seed)
        return image, label

    def _cut(
        self, case: CachedCase, start: Axes3, augmentation: AugmentationPlan | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        if augmentation is None:
            image, label = cut(case.image, start, self._patch_size), cut(case.label, start, self._patch_size)
            return torch.from_numpy(image), torch.from_numpy(label)
        generator = torch.Generator().manual_seed(seed)
        patch = augment(
            case.image, case.label, augmentation, generator, self._patch_size, start=start, spacing=case.spacing
        )
        return flip(*patch, self._mirror_axes, augmentation.mirror, generator)

    def _start(self, case: CachedCase, on_foreground: bool, random: np.random.Generator) -> tuple[Axes3, bool]:
        """Draw the first voxel of a patch, and return whether the patch is centred on foreground."""
        slack = np.array(case.label.shape) - self._patch_size
        low, high = np.minimum(slack, 0), np.maximum(slack, 0)
        start = random.integers(low, high + 1)
        present = [voxels for _, voxels in sorted(case.foreground.items()) if len(voxels)]
        has_foreground = on_foreground and bool(present)
        if has_foreground:
            voxels = present[random.integers(len(present))]
            centred = voxels[random.integers(len(voxels))] - np.array(self._patch_size) // 2
            # Along an axis where the volume is smaller than the patch, any start contains the voxel: keep it random.
            start = np.where(slack < 0, start, np.clip(centred, low, high))
        return (int(start[0]), int(start[1]), int(start[2])), has_foreground


class PatchSampler:
    """Draws batches of patches.

    Cases are reshuffled for every pass, so each is seen equally often. A fixed share of the patches is centred on a
    foreground voxel; the rest are placed uniformly.

    Parameters
    ----------
    cases
        The site's training cases.
    patch_size
        Voxels along x, y, z.
    batch_size
        Patches per batch.
    foreground_fraction
        Share of the patches over all steps that are centred on foreground.
    augmentation
        None leaves patches as they are.
    mirror_axes
        Axes along which the anatomy may be flipped.
    seed
        Seed, not negative.

    Raises
    ------
    ValueError
        If there are no cases, or a value is out of range.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        patch_size: Axes3,
        batch_size: int,
        foreground_fraction: float,
        augmentation: AugmentationPlan | None,
        mirror_axes: Collection[int],
        seed: int,
    ) -> None:
        if not cases:
            raise ValueError("a patch sampler needs at least one case")
        if batch_size < 1 or not 0 <= foreground_fraction <= 1 or seed < 0:
            raise ValueError("batch_size must be at least 1, foreground_fraction 0 to 1, seed not negative")
        self._cases = tuple(cases)
        self._cutter = PatchCutter(patch_size, augmentation, mirror_axes)
        self._batch_size = batch_size
        self._foreground_fraction = foreground_fraction
        self._seed = seed

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (0 or more); it is always the same for the same sampler and step."""
        first = step * self._batch_size
        samples = [self._sample(index) for index in range(first, first + self._batch_size)]
        return Batch(
            image=torch.stack([image for image, _, _ in samples]),
            label=torch.stack([label for _, label, _ in samples]),
            cases=tuple(name for _, _, name in samples),
        )

    def _sample(self, index: int) -> tuple[Tensor, Tensor, str]:
        """Return a patch by its index, which counts over all steps."""
        case = self._case(index)
        # Foreground patches are spaced evenly instead of drawn at random, so that short runs get the exact share.
        on_foreground = floor((index + 1) * self._foreground_fraction) > floor(index * self._foreground_fraction)
        image, label = self._cutter.patch(case, on_foreground, np.random.default_rng((self._seed, 1, index)))
        return image, label, case.name

    def _case(self, index: int) -> CachedCase:
        cycle, position = divmod(index, len(self._cases))
        order = np.random.default_rng((self._seed, 0, cycle)).permutation(len(self._cases))
        return self._cases[int(order[position])]


def prefetch(
    sampler: BatchSource, steps: Iterable[int], workers: int = 1, depth: int = 4, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """Prepare batches in background threads, ahead of training.

    Threads suffice: torch and numpy release the interpreter lock while they work, and the volumes are memory-mapped.
    Preparation starts when the first batch is requested. Leaving the loop early or closing the iterator stops the
    threads after their current batches.

    Parameters
    ----------
    sampler
        Source of the batches.
    steps
        Steps to prepare, in order.
    workers
        Number of threads.
    depth
        Number of batches prepared ahead, at least one.
    pin_memory
        Whether to put batches in page-locked memory, for copies to a GPU.

    Yields
    ------
    Batch
        One batch per step, in order.

    Raises
    ------
    Exception
        Any exception raised while preparing a batch, when that batch is due.
    """

    def prepare(step: int) -> Batch:
        batch = sampler.batch(step)
        return batch.pin_memory() if pin_memory else batch

    remaining = iter(steps)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="patches", initializer=_use_one_core)
    try:
        waiting: deque[Future[Batch]] = deque(executor.submit(prepare, step) for step in islice(remaining, depth))
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(executor.submit(prepare, step) for step in islice(remaining, 1))
            yield batch
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


_thread_setting = threading.Lock()


def _use_one_core() -> None:
    """Limit torch in this thread to one core, so that it does not compete with training.

    ``torch.set_num_threads`` sets the number for the calling thread and the default for later threads; a short-lived
    thread restores the default.
    """
    with _thread_setting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        if before != 1:
            restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
            restoring.start()
            restoring.join()
