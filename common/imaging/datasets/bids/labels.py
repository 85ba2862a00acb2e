"""Label maps of BIDS, in ``derivatives/``: discrete segmentations (``dseg``), or masks of one structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import DataError
from common.imaging.datasets.bids.names import BidsName, anat_files, parse_name
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.bids.tables import names_of_values
from common.imaging.datasets.case import Problem
from common.imaging.datasets.hints import unusable_file
from common.imaging.io.nifti import nifti_stem

_DERIVATIVES = "derivatives"
_OWN_SPACES = frozenset({"", "orig", "individual"})
"""Values of ``space`` for the scan's own grid; names of its suffixes mean the same."""
_STRUCTURE = frozenset({"label", "hemi"})
"""Entities by which label maps are of different structures."""
_KIND = frozenset({"desc", "seg", "atlas"})
"""Entities by which numbers in label maps may mean other things; a hospital may say that they do not."""
_ADVICE = "choose in site.yaml, such as bids: {{{key}: {value}}}"


@dataclass(frozen=True)
class BidsLabels:
    """Label maps.

    Attributes
    ----------
    files
        Name of a case -> label map.
    names
        Foreground value -> name, as far as it is said.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files)


def find_labels(
    root: Path, images: Mapping[str, Mapping[str, Path]], rules: BidsRules, problems: list[Problem]
) -> BidsLabels:
    """Find one label map for every scan that has any.

    Parameters
    ----------
    root
        The dataset folder.
    images
        Name of a case -> channel -> image.
    rules
        The hospital's choice.
    problems
        Gets an error where nothing says which label map to take, or which scan one belongs to.
    """
    suffixes = {channel.rpartition("_")[2] for of_case in images.values() for channel in of_case}
    folders = {folder: found for folder in _folders(root, rules, problems) if (found := _in(folder, suffixes, rules))}
    if len(folders) > 1:
        first, second, *_ = folders
        text = f"{first.name} and {second.name} both hold label maps: "
        problems.append(Problem(None, root / _DERIVATIVES, text + _ADVICE.format(key="derivatives", value=first.name)))
        return BidsLabels()
    if not folders:
        if rules.labels is not None:
            problems.append(Problem(None, root / _DERIVATIVES, f"has no label map of the name {rules.labels}"))
        return BidsLabels()
    ((folder, found),) = folders.items()
    files: dict[str, BidsName] = {}
    for label in found:
        case = _case_of(label, images)
        if (unusable := unusable_file(label.path)) is not None:
            problems.append(Problem(case or label.case, label.path, unusable))
        elif case is None:
            text = "belongs to no scan, or to several: its entities say not which"
            problems.append(Problem(label.case, label.path, text))
        elif case in files:
            text = f"is a label map of {case}, and so is {files[case].path.name}: "
            problems.append(Problem(case, label.path, text + _ADVICE.format(key="labels", value=_pattern(label))))
        else:
            files[case] = label
    chosen = list(files.values())
    if (unclear := _unclear(chosen, rules.labels is not None)) is not None:
        problems.append(unclear)
        return BidsLabels()
    return BidsLabels({case: label.path for case, label in files.items()}, _names(folder, chosen, problems))


def _folders(root: Path, rules: BidsRules, problems: list[Problem]) -> list[Path]:
    parent = root / _DERIVATIVES
    if rules.derivatives is not None:
        if (parent / rules.derivatives).is_dir():
            return [parent / rules.derivatives]
        text = "does not exist: correct bids.derivatives in site.yaml"
        problems.append(Problem(None, parent / rules.derivatives, text))
        return []
    return [folder for folder in sorted(parent.iterdir()) if folder.is_dir()] if parent.is_dir() else []


def _in(folder: Path, suffixes: Collection[str], rules: BidsRules) -> list[BidsName]:
    """Return the label maps of a folder: those that the rules name, or else segmentations, or else masks."""
    names = [name for path in anat_files(folder) if (name := parse_name(path)) is not None]
    if rules.labels is not None:
        pattern = rules.labels.replace("[", "[[]")
        return [name for name in names if fnmatchcase(nifti_stem(name.path) or "", pattern)]
    own = [name for name in names if name.value("space") in _OWN_SPACES | {*suffixes}]
    segmentations = [name for name in own if name.suffix == "dseg"]
    return segmentations or [name for name in own if name.suffix == "mask" and name.value("label")]


def _case_of(label: BidsName, images: Mapping[str, Mapping[str, Path]]) -> str | None:
    """Return the case with all entities of a label map, and no others if there is one; none of another session."""
    if label.case in images:
        return label.case
    words = set(label.case.split("_"))
    fitting = [case for case in images if words <= set(case.split("_")) and _visit(case) <= words]
    return fitting[0] if len(fitting) == 1 else None


def _visit(case: str) -> set[str]:
    """Return subject and session of a case."""
    return {word for word in case.split("_") if word.startswith(("sub-", "ses-"))}


def _unclear(labels: Sequence[BidsName], chosen: bool) -> Problem | None:
    """Return an error if label maps are of half a structure, or those of several scans of different kinds, by name.

    Parameters
    ----------
    labels
        The label maps.
    chosen
        Whether the hospital named them.
    """
    keys = _STRUCTURE if chosen else _STRUCTURE | _KIND
    for label in labels:
        first = labels[0]
        text = ""
        if label.suffix != first.suffix or any(label.value(key) != first.value(key) for key in keys):
            text = f"is of another kind than {first.path.name} by its name: "
        elif label.value("hemi") and not chosen:
            text = "covers one hemisphere: join it with the other one, or, if this one is meant, "
        if text:
            return Problem(None, label.path, text + _ADVICE.format(key="labels", value=_pattern(first)))
    return None


def _pattern(label: BidsName) -> str:
    """Return a pattern, quoted for YAML, for the names of label maps of one kind in all scans."""
    kind = (nifti_stem(label.path) or "").removeprefix(f"{label.case}_")
    return f"'*_{kind}'"


def _names(folder: Path, labels: Sequence[BidsName], problems: list[Problem]) -> dict[int, str]:
    """Return the names of labels: of a mask its own, of segmentations those of their tables."""
    if labels and all(label.suffix == "mask" for label in labels):
        name = labels[0].value("label")
        return {1: name} if name else {}
    try:
        return names_of_values(labels, folder)
    except DataError as error:
        problems.append(Problem(None, error.path, error.problem))
        return {}
