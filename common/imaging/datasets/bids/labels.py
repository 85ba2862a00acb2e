"""Label maps of BIDS, in ``derivatives/``: discrete segmentations (``dseg``), or masks of one structure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from common.errors import DataError
from common.imaging.datasets.bids.names import BidsName, anat_files, parse_name
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.case import Problem
from common.imaging.datasets.hints import unusable_file
from common.imaging.datasets.patients_csv import read_column
from common.imaging.io.nifti import nifti_stem

_DERIVATIVES = "derivatives"
_OWN_SPACES = frozenset({"", "orig", "individual"})
"""Values of ``space`` for the scan's own grid; names of its suffixes mean the same."""
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
    if (mixture := _mixture(chosen)) is not None:
        problems.append(mixture)
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
        return [name for name in names if fnmatchcase(nifti_stem(name.path) or "", rules.labels)]
    own = [name for name in names if name.value("space") in _OWN_SPACES | {*suffixes}]
    segmentations = [name for name in own if name.suffix == "dseg"]
    return segmentations or [name for name in own if name.suffix == "mask" and name.value("label")]


def _case_of(label: BidsName, images: Mapping[str, Mapping[str, Path]]) -> str | None:
    """Return the case with all entities of a label map, and no others if there is one."""
    if label.case in images:
        return label.case
    words = set(label.case.split("_"))
    fitting = [case for case in images if words <= set(case.split("_")) and case.split("_")[0] in words]
    return fitting[0] if len(fitting) == 1 else None


def _mixture(labels: Sequence[BidsName]) -> Problem | None:
    """Return an error if label maps of several scans are of different structures by their names."""
    for label in labels[1:]:
        if label.value("label") != labels[0].value("label"):
            text = f"is of another structure than {labels[0].path.name} by its name: "
            advice = _ADVICE.format(key="labels", value=_pattern(labels[0]))
            return Problem(None, label.path, text + advice)
    return None


def _pattern(label: BidsName) -> str:
    """Return a pattern, quoted for YAML, for the names of label maps of one kind in all scans."""
    kind = (nifti_stem(label.path) or "").removeprefix(f"{label.case}_")
    return f"'*_{kind}'"


def _names(folder: Path, labels: Sequence[BidsName], problems: list[Problem]) -> dict[int, str]:
    """Return the names of labels: of a mask its own, of segmentations those of a table beside them."""
    if labels and all(label.suffix == "mask" for label in labels):
        found = sorted({label.value("label") for label in labels})
        return {1: found[0]} if len(found) == 1 else {}
    tables = [folder / f"desc-{desc}_dseg.tsv" for desc in sorted({label.value("desc") for label in labels}) if desc]
    table = next((path for path in (*tables, folder / "dseg.tsv") if path.is_file()), None)
    if table is None:
        return {}
    try:
        rows = read_column(table, "index", "name", delimiter="\t")
        named = {int(index): name for index, (name, _) in rows.items() if name}
    except (DataError, ValueError) as error:
        text = error.problem if isinstance(error, DataError) else "has an index that is no whole number"
        problems.append(Problem(None, table, text))
        return {}
    return {value: name for value, name in named.items() if 0 < value < 256}
