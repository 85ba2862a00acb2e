"""Label maps of BIDS, in ``derivatives/``: discrete segmentations (``dseg``), or masks of one structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import DataError
from common.formatting import counted
from common.imaging.datasets.bids.names import BidsName, anat_files, parse_name
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.bids.tables import names_of_values
from common.imaging.datasets.case import Problem
from common.imaging.datasets.hints import unusable_file
from common.imaging.io.nifti import nifti_stem
from common.patterns import matches

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
        Name of a case -> label map, or the first of its masks.
    masks
        Name of a case -> value and file of each structure, where cases have masks of several.
    names
        Foreground value -> name, as far as it is said.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    masks: Mapping[str, tuple[tuple[int, Path], ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files)


def find_labels(
    root: Path, images: Mapping[str, Mapping[str, Path]], rules: BidsRules, problems: list[Problem]
) -> BidsLabels:
    """Find one label map, or masks of different structures, for every scan that has any.

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
    files = _by_case(found, images, problems)
    chosen = [label for of_case in files.values() for label in of_case]
    is_joined = any(len(of_case) > 1 for of_case in files.values())
    if (unclear := _unclear(chosen, rules.labels is not None, is_joined)) is not None:
        problems.append(unclear)
        return BidsLabels()
    paths = {case: of_case[0].path for case, of_case in files.items()}
    if not is_joined:
        return BidsLabels(paths, _names(folder, chosen, problems))
    values = {name: value for value, name in enumerate(sorted({label.value("label") for label in chosen}), start=1)}
    _tell_missing(files, values, problems)
    masks = {
        case: tuple((values[label.value("label")], label.path) for label in of_case) for case, of_case in files.items()
    }
    return BidsLabels(paths, {value: name for name, value in values.items()}, masks)


def _by_case(
    labels: Sequence[BidsName], images: Mapping[str, Mapping[str, Path]], problems: list[Problem]
) -> dict[str, list[BidsName]]:
    """Group label maps by case: one each, or masks of different structures."""
    files: dict[str, list[BidsName]] = {}
    for label in labels:
        case = _case_of(label, images)
        if (unusable := unusable_file(label.path)) is not None:
            problems.append(Problem(case or label.case, label.path, unusable))
        elif case is None:
            text = "belongs to no scan, or to several: its entities say not which"
            problems.append(Problem(label.case, label.path, text))
        elif (other := _rival(label, files.get(case, ()))) is not None:
            text = f"is a label map of {case}, and so is {other.path.name}: "
            problems.append(Problem(case, label.path, text + _ADVICE.format(key="labels", value=_pattern(label))))
        else:
            files.setdefault(case, []).append(label)
    return files


def _rival(label: BidsName, others: Sequence[BidsName]) -> BidsName | None:
    """Return a label map that excludes another one of its scan; masks of different structures do not."""
    if label.suffix == "mask" and label.value("label"):
        others = [one for one in others if one.suffix != "mask" or one.value("label") in ("", label.value("label"))]
    return others[0] if others else None


def _tell_missing(files: Mapping[str, Sequence[BidsName]], names: Collection[str], problems: list[Problem]) -> None:
    """Tell of scans that lack the mask of a structure which others have."""
    for name in names:
        cases = [case for case, labels in files.items() if name not in {label.value("label") for label in labels}]
        if cases:
            text = f"{counted(len(cases), 'scan')} of {len(files):,} without a mask of {name}, such as {cases[0]}: "
            text += "it is background there"
            problems.append(Problem(None, files[cases[0]][0].path, text, "warning"))


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
        return [name for name in names if matches(rules.labels, nifti_stem(name.path) or "")]
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


def _unclear(labels: Sequence[BidsName], chosen: bool, joined: bool) -> Problem | None:
    """Return an error if label maps are of half a structure, or those of several scans of different kinds, by name.

    Parameters
    ----------
    labels
        The label maps.
    chosen
        Whether the hospital named them.
    joined
        Whether scans have masks of several structures.
    """
    keys = (_STRUCTURE if chosen else _STRUCTURE | _KIND) - ({"label"} if joined else set())
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
