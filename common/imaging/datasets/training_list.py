"""Files of a dataset compared with the training list, and the suffix, that its ``dataset.json`` states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from common.formatting import counted
from common.imaging.datasets.case import Case, Problem
from common.imaging.datasets.dataset_json import Declaration
from common.imaging.io.nifti import nifti_stem

CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""Name of a channel's file, without suffix."""


def case_name(stem: str) -> str:
    """Return the name of the case that a file, without its suffix, may be a channel of."""
    match = CHANNEL_FILE.fullmatch(stem)
    return match["case"] if match else stem


def listed_cases(
    grouped: dict[str, tuple[Path, ...]],
    folders: tuple[Path, Path],
    training: Sequence[tuple[str, str | None]],
    problems: list[Problem],
) -> dict[str, tuple[Path, ...]]:
    """Compare the folders of images and label maps with the training list of ``dataset.json``."""
    listed: dict[str, tuple[Path, ...]] = {}
    reported = {problem.case for problem in problems}
    root = folders[0].parent
    for image, label in training:
        path = root / image
        stem = nifti_stem(path) or path.name
        name = stem if stem in grouped else case_name(stem)
        if name in listed:
            problems.append(Problem(name, root / "dataset.json", f"lists {name} twice in training"))
        elif name in grouped:
            listed[name] = grouped[name]
            for kind, entry, folder in (("image", image, folders[0]), ("label", label, folders[1])):
                text = f"training names the {kind} {entry} of {name}, and {folder.name}/ is read: correct one of them"
                if entry is not None and not _leads_to(entry, folder, name):
                    problems.append(Problem(name, root / "dataset.json", text))
        elif not {name, stem} & reported:
            problems.append(Problem(stem, path, "is listed in dataset.json but does not exist"))
    for name, files in grouped.items():
        if name not in listed:
            text = "is not in the training list of dataset.json and is ignored"
            problems.append(Problem(name, files[0], text, "warning"))
    return listed


def other_endings(root: Path, declaration: Declaration, cases: Sequence[Case]) -> list[Problem]:
    """Compare the suffix that ``dataset.json`` states with the files' own."""
    if declaration.ending is None:
        return []
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    stems = {path: nifti_stem(path) or path.name for path in files}
    others = [path for path in files if path.name[len(stems[path]) :] != declaration.ending]
    if not others:
        return []
    text = f"file_ending is {declaration.ending!r}, and {counted(len(others), 'file')} of {len(files)} end otherwise"
    return [Problem(None, root / "dataset.json", f"{text}, such as {others[0].name}", "warning")]


def _leads_to(entry: str, folder: Path, case: str) -> bool:
    """Return whether a path of the training list means a file of this case in this folder."""
    path = PurePosixPath(entry)
    name = nifti_stem(Path(path.name)) or path.name
    return path.parent.name in ("", folder.name) and case in (name, case_name(name))
