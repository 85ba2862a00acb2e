"""The scans of a BIDS folder.

Entities in the names say what belongs together. A subject is a patient, and each of their sessions, runs and so on is a
case. Suffixes are channels, of which those are read that are wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.errors import DataError
from common.formatting import counted
from common.imaging.datasets.bids.labels import BidsLabels, find_labels
from common.imaging.datasets.bids.names import CONTRAST, BidsName, anat_files, parse_name, subject_folders
from common.imaging.datasets.bids.rules import BidsRules
from common.imaging.datasets.case import Case, Problem
from common.imaging.datasets.hints import unusable_file
from common.imaging.datasets.patients_csv import read_column, with_table

PARTICIPANTS = "participants.tsv"
_DESCRIPTION = "dataset_description.json"
_NO_IMAGES = frozenset({"defacemask", "dseg", "mask", "probseg"})


@dataclass(frozen=True, eq=False)
class BidsScans:
    """All scans of a BIDS folder, before it is known which channels are wanted.

    Attributes
    ----------
    cases
        Those with a label map, or all where none are wanted; their images are to be chosen.
    files
        Name of a case -> channel -> image.
    labels
        Foreground value -> name; empty if nothing names them.
    has_labels
        Whether there are label maps.
    """

    cases: tuple[Case, ...]
    files: Mapping[str, Mapping[str, Path]]
    labels: dict[int, str]
    has_labels: bool

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of all channels, the most frequent first."""
        counts = Counter(channel for case in self.cases for channel in self.files[case.name])
        return tuple(sorted(counts, key=lambda channel: (-counts[channel], channel)))


def is_bids(root: Path) -> bool:
    """Return whether a folder holds anatomical scans of subjects, as BIDS arranges them."""
    return root.is_dir() and next(anat_files(root), None) is not None


def find_bids(root: Path, rules: BidsRules, labelled: bool) -> tuple[BidsScans, list[Problem]]:
    """Find the scans of a BIDS folder; no voxels are read.

    Parameters
    ----------
    root
        The folder.
    rules
        The hospital's choice of label maps.
    labelled
        Whether label maps are wanted.
    """
    problems: list[Problem] = []
    if not (root / _DESCRIPTION).is_file():
        problems.append(Problem(None, root / _DESCRIPTION, "is missing, and BIDS wants one", "warning"))
    images = _images(root, problems)
    files: dict[str, dict[str, Path]] = {}
    subjects: dict[str, str] = {}
    for image in images:
        of_case = files.setdefault(image.case, {})
        if image.channel in of_case:
            text = f"is {image.channel} of {image.case}, and so is {of_case[image.channel].name}: remove one"
            problems.append(Problem(image.case, image.path, text))
        of_case[image.channel] = image.path
        subjects[image.case] = image.subject
    labels = find_labels(root, files, rules, problems) if labelled else BidsLabels()
    _compare_participants(root, problems)
    cases = []
    for name, of_case in files.items():
        first = next(iter(of_case.values()))
        if not labels or name in labels.files:
            label, masks = labels.files.get(name), labels.masks.get(name, ())
            cases.append(Case(name, (first,), label, patient=subjects[name], masks=masks))
        else:
            problems.append(Problem(name, first, "has no label map and is left out", "warning"))
    cases = with_table(root, sorted(cases, key=lambda case: case.name), problems, files)
    return BidsScans(tuple(cases), files, labels.names, bool(labels)), problems


def choose_channels(
    scans: BidsScans, wanted: Sequence[str] | None, given: Mapping[str, str], root: Path
) -> tuple[tuple[str, ...], tuple[Case, ...], list[Problem]]:
    """Choose the images that are the channels wanted.

    Parameters
    ----------
    scans
        From :func:`find_bids`.
    wanted
        Names of the channels; None for all that every case has, or else the most frequent one.
    given
        Name here -> name among those wanted, where they differ.
    root
        The folder, for errors.

    Returns
    -------
    tuple[tuple[str, ...], tuple[Case, ...], list[Problem]]
        The channels by their names here, in the wanted order; the cases that have all of them; and problems with those
        that have some of them.
    """
    problems: list[Problem] = []
    channels = _default_channels(scans)
    if wanted is not None:
        targets = {_folded(name): target for name, target in given.items()}
        names = {_folded(targets.get(_folded(name), name)): name for name in reversed(scans.channels)}
        if all(_folded(target) in names for target in wanted):
            channels = tuple(names[_folded(target)] for target in wanted)
        elif len(scans.channels) > 1:
            text = f"holds {', '.join(scans.channels)}, and {', '.join(wanted)} is wanted: say which is which by "
            target = next(target for target in wanted if _folded(target) not in names)
            like = next((name for name in scans.channels if _folded(target) in _folded(name)), scans.channels[0])
            problems.append(Problem(None, root, f"{text}channels_map in site.yaml, such as {{{like}: {target}}}"))
            channels = scans.channels[: len(wanted)]  # so that no case has another error for the same reason
    cases = []
    for case in scans.cases:
        found = scans.files[case.name]
        missing = [channel for channel in channels if channel not in found]
        severity: Literal["error", "warning"] = "warning" if wanted is None else "error"
        if not missing and (contrast := _other_contrast(case, channels)):
            text = (
                f"is a label map of the scan with {contrast}, and the channels {', '.join(channels)} have none of it: "
            )
            text += "make that scan a channel (channels_map), or choose other label maps (bids.labels) in site.yaml"
            problems.append(Problem(case.name, case.label or case.images[0], text, severity))
        elif not missing:
            cases.append(replace(case, images=tuple(found[one] for one in channels)))
        elif len(missing) < len(channels) or wanted is None:
            text = f"has no {', '.join(missing)} image"
            problems.append(Problem(case.name, case.images[0], text, severity))
    return channels, tuple(cases), problems


def _other_contrast(case: Case, channels: Sequence[str]) -> str:
    """Return the contrast agent that a case's label map names, if none of the channels is after it."""
    name = None if case.label is None else parse_name(case.label)
    agent = "" if name is None else name.value(CONTRAST)
    contrast = f"{CONTRAST}-{agent}"
    return contrast if agent and not any(one.startswith(f"{contrast}_") for one in channels) else ""


def _default_channels(scans: BidsScans) -> tuple[str, ...]:
    everywhere = [name for name in scans.channels if all(name in scans.files[case.name] for case in scans.cases)]
    return tuple(everywhere) or scans.channels[:1]


def _folded(name: str) -> str:
    return name.strip().casefold()


def _images(root: Path, problems: list[Problem]) -> list[BidsName]:
    found = []
    for path in anat_files(root):
        name = parse_name(path)
        if name is None:
            text = "is not named as BIDS wants (sub-LABEL[_ses-LABEL][_...]_SUFFIX) and is ignored"
            problems.append(Problem(None, path, text, "warning"))
        elif (unusable := unusable_file(path)) is not None:
            problems.append(Problem(name.case, path, unusable))
        elif name.suffix not in _NO_IMAGES:
            found.append(name)
    return found


def _compare_participants(root: Path, problems: list[Problem]) -> None:
    """Compare the folders of subjects with the table of participants, if there is one."""
    table = root / PARTICIPANTS
    if not table.exists():
        return
    try:
        listed = set(read_column(table, "participant_id", "participant_id", delimiter="\t"))
    except DataError as error:
        problems.append(Problem(None, error.path, error.problem))
        return
    present = {folder.name for folder in subject_folders(root)}
    if absent := sorted(present - listed):
        text = f"has no row for {counted(len(absent), 'subject')} with a folder, such as {absent[0]}: add them"
        problems.append(Problem(None, table, text))
    if extra := sorted(listed - present):
        text = f"has rows for {counted(len(extra), 'subject')} without a folder, such as {extra[0]}"
        problems.append(Problem(None, table, text, "warning"))
