"""What to do about a folder that is almost a dataset."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from common.formatting import counted
from common.imaging.datasets.dataset_json import Declaration

_FOLDERS = ("imagesTr", "labelsTr", "images", "labels")
_HALVES = (".hdr", ".img", ".hdr.gz", ".img.gz")
_OTHER_FORMATS = (".mha", ".mhd", ".nrrd", ".mgz", ".mgh", ".mnc", ".dcm", ".npz", ".npy")


def is_half(path: Path) -> bool:
    """Return whether a file is, by its name, one of the two files of an Analyze or NIfTI pair."""
    return path.name.lower().endswith(_HALVES)


def why_ignored(path: Path) -> str:
    """Say why a file in a folder of scans is not read."""
    if is_half(path):
        return "is half of a two-file NIfTI (.hdr and .img) and is ignored: convert it to a single .nii or .nii.gz"
    return "is not a NIfTI file (.nii, .nii.gz) and is ignored"


def unusable_file(path: Path) -> str | None:
    """Say why nothing should open this file, or why no result could be named after it."""
    if not path.is_file():
        return "is not a regular file: it is a pipe, a device or a broken link"
    return None if readable(path.name) == path.name else "its name is not UTF-8: rename it"


def readable(name: str) -> str:
    """Replace the bytes of a file name that are not UTF-8, so that the name can be printed and written."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def missing_folder(folder: Path) -> str:
    """Say what is wrong where there is no folder of label maps."""
    other = _spelt_otherwise(folder.parent, folder.name)
    if other is not None:
        return f"does not exist, but {other.name} does: rename that to {folder.name}"
    return "does not exist; it must hold one label map per case"


def folder_hint(root: Path, declaration: Declaration) -> str:
    """Return what probably helps with a folder without cases, as a sentence after a space; empty if nothing does."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for folder in folders:
        if (folder / "imagesTr").is_dir() or (folder / "images").is_dir():
            return f" The folder {folder.name} inside looks like a dataset: give that one"
    for name in _FOLDERS:
        if (other := _spelt_otherwise(root, name)) is not None:
            return f" {other.name}/ must be written {name}/: rename it"
    if (root / "imagesTs").is_dir():
        return " imagesTs/ holds scans without label maps: to segment them, give that folder to fedvox-client predict"
    if declaration.training:
        image = declaration.training[0][0]
        return (
            f" dataset.json lists files elsewhere, such as {image}: put them, or links to them, into imagesTr/ "
            "(CASE.nii.gz, or CASE_0000.nii.gz per channel) and labelsTr/ (CASE.nii.gz)"
        )
    return _format_hint(root)


def _format_hint(root: Path) -> str:
    found = Counter(
        suffix
        for path in root.iterdir()
        for suffix in (*_HALVES, *_OTHER_FORMATS)
        if path.is_file() and path.name.lower().endswith(suffix)
    )
    if not found:
        return ""
    suffix, count = found.most_common(1)[0]
    return f" It has {counted(count, f'{suffix} file')}: convert them to .nii.gz, a single file per scan"


def _spelt_otherwise(root: Path, name: str) -> Path | None:
    same = (path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() == name.lower())
    return next((path for path in same if path.name != name), None)
