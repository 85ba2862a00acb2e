"""Dataset metadata in ``dataset.json``, in the Decathlon's or nnU-Net's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError


@dataclass(frozen=True)
class Declaration:
    """Content of ``dataset.json``; all fields are empty if there is no such file.

    Attributes
    ----------
    channels
        Names of the channels, in order.
    labels
        Foreground value -> name.
    training
        Image paths of the training list as written; None if there is no list.
    numbered_channels
        Whether the format implies nnU-Net's ``CASE_0000`` image names.
    """

    channels: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    training: tuple[str, ...] | None = None
    numbered_channels: bool = False


def read_declaration(path: Path) -> Declaration:
    """Read ``dataset.json``.

    Raises
    ------
    DataError
        If it is not JSON, or channels, labels or the training list have an unknown form.
    """
    if not path.exists():
        return Declaration()
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(path, f"is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, "must hold a JSON object with channels and labels")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise DataError(path, f"file_ending {ending!r} is not supported: convert the images to .nii.gz")
    return Declaration(
        channels=_channels(path, content),
        labels=_labels(path, content.get("labels")),
        training=_training(path, content.get("training")),
        numbered_channels="channel_names" in content,
    )


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    names = content.get(key)
    if names is None:
        return ()
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or sorted(names) != sorted(str(index) for index in range(len(names))):
        raise DataError(path, f'{key} must number the channels from 0, as in {{"0": "MRI"}}, not {names!r}')
    return tuple(str(names[str(index)]) for index in range(len(names)))


def _labels(path: Path, content: Any) -> dict[int, str]:
    """Parse foreground labels, written as value -> name (Decathlon) or name -> value (nnU-Net)."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DataError(path, f'labels must be written as in {{"0": "background", "1": "tumour"}}, not {content!r}')
    labels: dict[int, str] = {}
    by_value = all(_is_whole(key) for key in content)
    for key, entry in content.items():
        value, name = (key, entry) if by_value else (entry, key)
        if isinstance(value, list):
            raise DataError(path, f"label {name!r} is a region of several values; give each value its own label")
        if not _is_whole(value) or not 0 <= int(value) <= 255:
            raise DataError(path, f"label {name!r} has the value {value!r}; values are whole numbers from 0 to 255")
        if int(value) in labels:
            raise DataError(path, f"label value {value} is declared twice")
        labels[int(value)] = str(name)
    labels.pop(0, None)
    return dict(sorted(labels.items()))


def _training(path: Path, content: Any) -> tuple[str, ...] | None:
    if content is None:
        return None
    entries = content if isinstance(content, list) else [None]
    images = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    names = tuple(image for image in images if isinstance(image, str))
    if len(names) < len(images):
        raise DataError(path, 'training must be a list of {"image": ..., "label": ...}')
    return names


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdecimal())
