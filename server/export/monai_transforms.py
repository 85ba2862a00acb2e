"""Transforms of a MONAI bundle: preprocessing and the way back exactly as ``fedvox-client predict`` does them.

This file and the modules that it imports are copied into the bundle's ``scripts`` folder. There it needs NumPy, PyTorch
and MONAI, and no Fedvox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from common.imaging.geometry import Grid, reorient_from_ras, reorient_to_ras
from common.imaging.preprocessing import preprocess_image, restore_prediction
from common.imaging.volume import Source, Volume

Item = dict[str, Any]


class Preprocess:
    """Turn ``image``, as ``LoadImaged`` reads it, into the network's input.

    Parameters
    ----------
    plan
        The ``preprocessing`` of the model's plan.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        intensity = [SimpleNamespace(**channel) for channel in plan["intensity"]]
        self._plan: Any = SimpleNamespace(**{**plan, "intensity": intensity})

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Replace ``image`` (channels, i, j, k) by (channels, x, y, z), and add ``stored`` and ``geometry``."""
        image = item["image"]
        x, y, z = image.shape[1:]
        stored = Grid((x, y, z), np.asarray(image.affine, dtype=np.float64))
        array = np.ascontiguousarray(reorient_to_ras(np.asarray(image, dtype=np.float32), stored))
        prepared = preprocess_image(Volume(array, stored.to_ras(), Source(stored)), self._plan)
        result = torch.from_numpy(prepared.image)
        return {**item, "image": result, "meta": image.meta, "stored": stored, "geometry": prepared.geometry}


class Restore:
    """Turn ``pred``, the network's logits, into a label map on the scan's own grid."""

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Replace ``pred`` (classes, x, y, z) by (1, i, j, k) uint8."""
        labels = restore_prediction(np.asarray(item["pred"], dtype=np.float32), item["geometry"])
        restored = np.ascontiguousarray(reorient_from_ras(labels, item["stored"]))
        return {**item, "pred": MetaTensor(torch.from_numpy(restored)[None], meta=item["meta"])}


class Segmenter:
    """Segment all scans of a dataset, one after another.

    Parameters
    ----------
    dataset
        Items with ``image``, preprocessed.
    network, inferer
        The network, and how it is applied to a whole volume.
    postprocessing
        Called with each item and its logits (``pred``).
    device
        Where the network computes.
    """

    def __init__(
        self,
        dataset: Sequence[Item],
        network: torch.nn.Module,
        inferer: Callable[..., torch.Tensor],
        postprocessing: Callable[[Item], Any],
        device: torch.device,
    ) -> None:
        self._dataset, self._network, self._inferer = dataset, network, inferer
        self._postprocessing, self._device = postprocessing, device

    def run(self) -> None:
        """Do it."""
        for number in range(len(self._dataset)):
            item = self._dataset[number]
            with torch.inference_mode():
                logits = self._inferer(item["image"][None].to(self._device), self._network)
            self._postprocessing({**item, "pred": logits[0].cpu()})


def cases(source: str | Sequence[str]) -> list[Item]:
    """Return the scans of a file, of a list of files (one scan, a file for each channel), or of a folder of files."""
    if not isinstance(source, str):
        return [{"image": list(source)}]
    folder = Path(source)
    if not folder.is_dir():
        return [{"image": source}]
    found = [{"image": str(path)} for path in sorted(folder.iterdir()) if path.name.endswith((".nii", ".nii.gz"))]
    if not found:
        raise FileNotFoundError(f"{folder}: holds no .nii.gz or .nii file")
    return found
