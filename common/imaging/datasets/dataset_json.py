"""Dataset metadata in ``dataset.json``, in the Decathlon's or nnU-Net's format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import DataError

_WHOLE = re.compile(r"[+-]?[0-9]{1,9}")
_NOTHING = ("", "background", "bg", "none", "null", "0", "clear label", "unlabeled", "unlabelled", "exterior")


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
        Image and label path of each entry of the training list, or of nnU-Net's ``dataset``, with slashes; the label is
        None where it is not named. None if there is no list.
    ending
        Suffix of the files' names that it states; None if it does not.
    numbered_channels
        Whether the format implies nnU-Net's ``CASE_0000`` image names.
    cases
        Number of training cases that it names; None if it does not.
    doubts
        What is odd and does not change what is read.
    """

    channels: tuple[str, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    training: tuple[tuple[str, str | None], ...] | None = None
    numbered_channels: bool = False
    cases: int | None = None
    ending: str | None = None
    doubts: tuple[str, ...] = ()


def read_declaration(path: Path) -> Declaration:
    """Read ``dataset.json``.

    Raises
    ------
    DataError
        If it is not JSON, or channels, labels or the training list have an unknown form.
    """
    if not path.exists():
        return Declaration()
    if not path.is_file():
        raise DataError(path, "is not a regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique(path))
    except RecursionError:
        raise DataError(path, "is not readable as JSON (nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise DataError(path, f"is not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, "must hold a JSON object with channels and labels")
    labels, doubts = _labels(path, content.get("labels"))
    ending, odd_ending = _ending(path, content)
    files = _files_by_case(path, content.get("dataset"))
    return Declaration(
        channels=_channels(path, content),
        labels=labels,
        training=_training(path, content.get("training")) if files is None else files,
        numbered_channels="channel_names" in content,
        cases=content["numTraining"] if _is_whole(content.get("numTraining")) else None,
        ending=ending,
        doubts=(*odd_ending, *doubts),
    )


def _unique(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return what makes a dictionary of a JSON object's pairs: the last of two equal keys would win without a word."""

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(path, f"key {twice!r} is declared twice; keep one of them")
        return found

    return make


def _ending(path: Path, content: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    ending = content.get("file_ending")
    if ending in (None, ".nii.gz", ".nii"):
        return ending, []
    if ending in ("nii.gz", "nii"):
        return f".{ending}", [f"file_ending {ending!r} is read as '.{ending}'; write the dot"]
    raise DataError(path, f"file_ending {ending!r} is not supported: convert the images to .nii.gz")


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


def _labels(path: Path, content: Any) -> tuple[dict[int, str], list[str]]:
    """Parse foreground labels, value -> name (Decathlon) or name -> value (nnU-Net), and doubts about them."""
    if content is None:
        return {}, []
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
        labels[int(value)] = str(name).strip()
    doubts = _check_names(path, labels)
    labels.pop(0, None)
    return dict(sorted(labels.items())), doubts


def _check_names(path: Path, labels: Mapping[int, str]) -> list[str]:
    """Refuse names whose values Fedvox would take for something else; return doubts."""
    first: dict[str, int] = {}
    for value, name in labels.items():
        word = name.casefold()
        if word in first:
            raise DataError(path, f"labels {first[word]} and {value} are both named {name!r}; give each its own name")
        first[word] = value
        if value > 0 and word == "background":
            raise DataError(path, f"background has the value {value}; it must be 0 in the label maps")
        if value > 0 and word == "ignore":
            text = "marks voxels without annotation, which cannot be left out of training: annotate or remove them"
            raise DataError(path, f"label {value} ('ignore') {text}")
    if labels.get(0, "").casefold() not in _NOTHING:
        return [f"label 0 is named {labels[0]!r}, and is read as background"]
    return []


def _training(path: Path, content: Any) -> tuple[tuple[str, str | None], ...] | None:
    if content is None:
        return None
    if content == []:
        raise DataError(path, "its training list is empty; list the cases, or remove the list")
    found = []
    for entry in content if isinstance(content, list) else [None]:
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
        if not isinstance(image, str) or not isinstance(label, str | None):
            raise DataError(path, 'training must be a list of {"image": ..., "label": ...}')
        found.append((_with_slashes(image), None if label is None else _with_slashes(label)))
    return tuple(found)


def _files_by_case(path: Path, content: Any) -> tuple[tuple[str, str | None], ...] | None:
    """Return first channel and label of each case that nnU-Net's ``dataset`` lists in place of a training list."""
    if content is None:
        return None
    if not isinstance(content, dict) or not content:
        raise DataError(path, 'dataset must be written as in {"case": {"images": [...], "label": ...}}, or left out')
    found = []
    for case, entry in content.items():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(images, list) and images and all(isinstance(image, str) for image in images)):
            raise DataError(path, f"dataset names no images for {case!r}: list one path per channel")
        if not isinstance(label, str | None):
            raise DataError(path, f"dataset names a label for {case!r} that is no path")
        found.append((_with_slashes(images[0]), None if label is None else _with_slashes(label)))
    return tuple(found)


def _with_slashes(path: str) -> str:
    """Return a path as Windows or another system writes it, with slashes."""
    return path.replace("\\", "/")


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, str) and _WHOLE.fullmatch(value.strip()) is not None)
