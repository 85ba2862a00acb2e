"""Training patches: which part of which patient is seen at which step.

A batch is a pure function of the sampler's seed and the step, so it does not matter how many threads prepare
batches, in which order, or whether training was interrupted in between.
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
from common.imaging.patches.augmentation import augment
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
        the name of the patient that each patch comes from.
    """

    image: Tensor
    label: Tensor
    cases: tuple[str, ...]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        return Batch(self.image.pin_memory(), self.label.pin_memory(), self.cases)


class BatchSource(Protocol):
    """Where batches come from; may be asked by several threads at a time."""

    def batch(self, step: int) -> Batch:
        """The batch of a number: always the same for the same source and number."""


class PatchCutter:
    """Cuts single patches out of patients, and augments them.

    A volume smaller than the patch is padded with zeros, at a random place. A rotation or scaling is left out if a
    patch would lose its foreground by it.

    Parameters
    ----------
    patch_size
        voxels along x, y, z.
    augmentation
        None leaves patches as they are.
    mirror_axes
        axes along which the anatomy may be flipped.
    """

    def __init__(self, patch_size: Axes3, augmentation: AugmentationPlan | None, mirror_axes: Collection[int]) -> None:
        self._patch_size = patch_size
        self._augmentation = augmentation
        self._straight = augmentation and augmentation.model_copy(update={"rotation": 0.0, "scaling": 0.0})
        self._mirror_axes = tuple(mirror_axes)

    def patch(self, case: CachedCase, on_foreground: bool, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One patch of a patient.

        Parameters
        ----------
        case
            the patient.
        on_foreground
            centre it on a foreground voxel, as far as the volume's border allows, of a label drawn with equal chances
            among those that the patient has.
        random
            all that is drawn depends on it.

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
        return augment(
            case.image,
            case.label,
            augmentation,
            self._mirror_axes,
            generator,
            self._patch_size,
            start=start,
            spacing=case.spacing,
        )

    def _start(self, case: CachedCase, on_foreground: bool, random: np.random.Generator) -> tuple[Axes3, bool]:
        """The first voxel of a patch, and whether the patch was made to hold foreground."""
        slack = np.array(case.label.shape) - self._patch_size
        low, high = np.minimum(slack, 0), np.maximum(slack, 0)
        start = random.integers(low, high + 1)
        present = [voxels for _, voxels in sorted(case.foreground.items()) if len(voxels)]
        has_foreground = on_foreground and bool(present)
        if has_foreground:
            voxels = present[random.integers(len(present))]
            centred = voxels[random.integers(len(voxels))] - np.array(self._patch_size) // 2
            # Along an axis where the volume is smaller than the patch, any place holds the voxel: it stays random.
            start = np.where(slack < 0, start, np.clip(centred, low, high))
        return (int(start[0]), int(start[1]), int(start[2])), has_foreground


class PatchSampler:
    """Draws batches of patches.

    Patients come in shuffled passes, so each is seen equally often. A fixed share of the patches is centred on a
    foreground voxel; the rest lie anywhere.

    Parameters
    ----------
    cases
        the site's training patients.
    patch_size
        voxels along x, y, z.
    batch_size
        patches per batch.
    foreground_fraction
        share of the patches, over all steps, that are centred on foreground.
    augmentation
        None leaves patches as they are.
    mirror_axes
        axes along which the anatomy may be flipped.
    seed
        not negative.

    Raises
    ------
    ValueError
        there are no cases, or a value is out of range.
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
        """The batch of a step (0 or more): always the same for the same sampler and step."""
        first = step * self._batch_size
        samples = [self._sample(index) for index in range(first, first + self._batch_size)]
        return Batch(
            image=torch.stack([image for image, _, _ in samples]),
            label=torch.stack([label for _, label, _ in samples]),
            cases=tuple(name for _, _, name in samples),
        )

    def _sample(self, index: int) -> tuple[Tensor, Tensor, str]:
        """The patch with a running number counted over all steps."""
        case = self._case(index)
        # The share is spread evenly over the running numbers instead of drawn, so small federations get it exactly.
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
    """Prepares batches in background threads, ahead of the training that consumes them.

    Threads do: torch and numpy release the interpreter lock while they work, and the volumes are memory-mapped.
    Preparation starts with the first batch that is asked for. Leaving the loop early, or closing the iterator,
    stops the threads after the batch in hand.

    Parameters
    ----------
    sampler
        where batches come from.
    steps
        the steps wanted, in this order.
    workers
        threads.
    depth
        batches prepared ahead, at least one.
    pin_memory
        whether batches lie in page-locked memory, for copies to a GPU.

    Yields
    ------
    Batch, None, None
        One batch per step, in order.

    Raises
    ------
    Exception
        whatever the preparation of a batch raised, when that batch is due.
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
    """Keeps torch in this thread to one core, so that it does not compete with the training for all of them.

    ``torch.set_num_threads`` sets the calling thread's number and the one that later threads start with; the second
    is put back by asking for the old number from a thread that then ends.
    """
    with _thread_setting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        if before != 1:
            restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
            restoring.start()
            restoring.join()
