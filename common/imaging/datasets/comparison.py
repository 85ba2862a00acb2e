"""Compares what a dataset declares with what a federation, or a model, wants of it.

What changes the meaning of a voxel is an error: a structure's value, a channel's place, a modality. A difference that
may be only one of words is a warning. Nothing is matched by a guess: a hospital maps structures and channels by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.formatting import counted
from common.imaging.datasets.bids.rules import USUAL_BIDS, BidsRules
from common.imaging.datasets.case import Case, Problem, Reading
from common.imaging.datasets.dataset import Dataset
from common.imaging.datasets.dicom_labels import MOST_LABEL, compare_segments, wanted_structures
from common.imaging.datasets.dicom_patients import patient_problems
from common.imaging.io.dicom.rules import USUAL_RULES, DicomRules
from common.imaging.ranges import USUAL_RANGES, GeometryRanges

if TYPE_CHECKING:
    from common.imaging.io.dicom.labels.objects import Overlap, Structure
    from common.plan.base import Code
    from common.plan.plan import Plan, PreprocessingPlan

BACKGROUND = "background"

_SEQUENCES = (
    frozenset({"ct", "cbct"}),
    frozenset({"pet"}),
    frozenset({"t1", "t1w", "mprage", "t1n"}),
    frozenset({"t1c", "t1ce", "t1gd"}),
    frozenset({"t2", "t2w"}),
    frozenset({"flair", "t2f"}),
    frozenset({"adc"}),
    frozenset({"dwi"}),
    frozenset({"pd", "pdw"}),
)
"""Names of one kind of image each; two of different kinds are never the same channel."""
_OPPOSITES = frozenset(
    frozenset(pair)
    for pair in (
        *(("left", "right"), ("l", "r"), ("anterior", "posterior"), ("superior", "inferior"), ("upper", "lower")),
        *(("medial", "lateral"), ("proximal", "distal"), ("inner", "outer")),
    )
)
_MR_WORDS = frozenset({"mr", "mri"}).union(*_SEQUENCES[2:])
_CT_WORDS = _SEQUENCES[0]
_MODALITIES = ((_CT_WORDS, "CT"), (_MR_WORDS, "MR"), (_SEQUENCES[1], "PT"))
"""Words of channels, and Modality in DICOM of images that are called so."""
_GENERIC = re.compile(r"(channel|label|class|image|mri?|modality)?[ _-]*\d*")


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a dataset; None where anything will do.

    Attributes
    ----------
    labels
        Foreground value -> name.
    channels
        Names of the channels, in order.
    modality
        As in the federation file: ``CT``, ``MR`` or ``other``.
    preprocessing
        How cases will be preprocessed.
    codes
        Foreground value -> scheme and value of its code, for labels that have one.
    """

    labels: Mapping[int, str] | None = None
    channels: tuple[str, ...] | None = None
    modality: str | None = None
    preprocessing: PreprocessingPlan | None = None
    codes: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def by(cls, plan: Plan, modality: str | None = None) -> Wanted:
        """Return what a plan wants."""
        codes = {value: code.key for value, code in plan.label_codes.items()}
        return cls(plan.labels, plan.channels, modality, plan.preprocessing, codes)

    @classmethod
    def of(
        cls,
        labels: Mapping[int, str] | None,
        codes: Mapping[int, Code],
        channels: tuple[str, ...] | None,
        modality: str,
    ) -> Wanted:
        """Return what a federation file wants, before there is a plan."""
        return cls(labels, channels, modality, codes={value: code.key for value, code in codes.items()})


ANYTHING = Wanted()


@dataclass(frozen=True)
class SiteTerms:
    """What a hospital's site file says about its data.

    Attributes
    ----------
    ranges
        What the geometry of its scans may be.
    labels_map, channels_map
        Name in the dataset -> name in the federation; a label may become ``background``.
    patient_rule
        As in ``Reading``.
    dicom
        How DICOM is read.
    bids
        Which label maps of BIDS are read.
    """

    ranges: GeometryRanges = USUAL_RANGES
    labels_map: Mapping[str, str] = field(default_factory=dict)
    channels_map: Mapping[str, str] = field(default_factory=dict)
    patient_rule: re.Pattern[str] | None = None
    dicom: DicomRules = USUAL_RULES
    bids: BidsRules = USUAL_BIDS


OWN_TERMS = SiteTerms()


def compare(dataset: Dataset, wanted: Wanted, terms: SiteTerms = OWN_TERMS) -> tuple[Dataset, list[Problem]]:
    """Return the dataset as it must be read to give what is wanted, and what contradicts it."""
    declares = dataset.root.is_dir() and not dataset.structures and not dataset.layout.startswith("bids")
    place = dataset.root / "dataset.json" if declares else dataset.root
    findings = _Findings(place)
    unlike: list[Problem] = []
    if wanted.channels is not None:
        dataset, unlike = dataset.with_channels(wanted.channels, terms.channels_map)
        findings.problems += unlike
    overlap: Overlap = "tell" if wanted.labels is None else terms.dicom.overlap
    reading = Reading(terms.ranges, terms.patient_rule, overlap=overlap)
    if dataset.structures:
        structures, labels = _map_segments(dataset, wanted, terms.labels_map, findings)
        reading = replace(reading, structures=structures)
    else:
        values, labels = _map_labels(dataset, wanted.labels, terms.labels_map, findings)
        reading = replace(reading, label_values=values)
    unclear = any(problem.case is None for problem in unlike)
    given = None if unclear else wanted.channels
    order, channels = _map_channels(dataset, given, terms.channels_map, findings)
    if wanted.modality is not None:
        _compare_modality(channels, wanted.modality, findings)
    for case in dataset.cases:
        if text := modality_problem(case, wanted):
            findings.problems.append(Problem(case.name, case.images[0], text))
    read = dataset.read_as(replace(reading, channel_order=order)).declared_as(channels, labels)
    findings.problems += patient_problems(read.cases, dataset.root)
    if reading.structures:
        cases, problems = compare_segments(read.cases, reading.structures, place)
        return replace(read, cases=cases), findings.problems + problems
    return read, findings.problems


def modality_problem(case: Case, wanted: Wanted) -> str:
    """Say how DICOM's Modality of a case contradicts what is wanted; empty if it does not.

    ``MR`` is the modality of federations that name none: a channel's name says more.
    """
    if case.series is None:
        return ""
    words = set().union(*(_tokens(name) for name in wanted.channels or ()))
    kinds = [name for known, name in _MODALITIES if words & known]
    if wanted.modality == "CT" or (wanted.modality == "MR" and not kinds):
        kinds = [wanted.modality]
    found = case.series.modality.strip().upper()
    if not kinds or found in kinds or found not in {name for _, name in _MODALITIES}:
        return ""
    return (
        f"{case.series.title}: its Modality is {found}, and {' or '.join(kinds)} is wanted; give other data, leave it "
        "out (dicom.series in site.yaml), or correct modality and channels in the federation"
    )


class _Findings:
    """Collects problems of the declaration."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.problems: list[Problem] = []

    def error(self, text: str) -> None:
        self.problems.append(Problem(None, self._place, text))

    def warning(self, text: str) -> None:
        self.problems.append(Problem(None, self._place, text, "warning"))

    def check_map(
        self,
        key: str,
        given: Mapping[str, str],
        names: Collection[str],
        targets: Collection[str],
        word: Callable[[str], str] | None = None,
    ) -> None:
        fold = word or _word
        known, possible = {fold(name) for name in names}, {fold(target) for target in targets}
        for name, target in given.items():
            if fold(name) not in known:
                self.error(f"site.yaml: {key} names {name!r}, and the dataset declares {_listed(names)}")
            if fold(target) not in possible:
                self.error(f"site.yaml: {key} leads to {target!r}, and the federation has {_listed(targets)}")


def _map_segments(
    dataset: Dataset, wanted: Wanted, given: Mapping[str, str], findings: _Findings
) -> tuple[tuple[Structure, ...], dict[int, str]]:
    """Return the labels as the segments of DICOM are compared with them, and their names."""
    if wanted.labels is None:
        return dataset.structures, dict(dataset.labels)
    # Late: it belongs to DICOM, which few datasets need.
    from common.imaging.io.dicom.labels.objects import word

    labels = dict(wanted.labels) | {0: BACKGROUND}
    segments = [segment for case in dataset.cases for one in case.objects for segment in one.segments]
    names = dict.fromkeys(name for segment in segments for name in (segment.full_name, segment.name))
    findings.check_map("labels_map", given, list(names), list(labels.values()), word)
    targets: dict[str, str] = {}
    for name, target in given.items():
        if word(targets.setdefault(word(name), target)) != word(target):
            findings.error(f"site.yaml: labels_map gives {name!r}, however it is spelled, two labels")
    by_word: dict[str, int] = {}
    for value, name in labels.items():
        if (other := by_word.setdefault(word(name), value)) != value:
            findings.error(f"labels {other} and {value} of the federation have one name, by which segments are found")
    if max(labels) > MOST_LABEL:
        findings.error(f"label {max(labels)} of the federation is more than {MOST_LABEL}, the most for DICOM")
    values = {name: by_word[word(target)] for name, target in given.items() if word(target) in by_word}
    return wanted_structures(labels, wanted.codes, values), dict(wanted.labels)


def _map_labels(
    dataset: Dataset, wanted: Mapping[int, str] | None, given: Mapping[str, str], findings: _Findings
) -> tuple[tuple[tuple[int, int], ...], dict[int, str]]:
    """Return stored and wanted value of each mapped label, and the labels that the mapped dataset declares."""
    declared = dict(dataset.labels)
    if wanted is None:
        return (), declared
    # Without a declaration a label's name is its value.
    declared = declared or {int(name): name for name in given if name.isdecimal() and len(name) <= 3}
    names = dict(wanted) | {0: BACKGROUND}
    findings.check_map("labels_map", given, list(declared.values()), list(names.values()))
    by_word = {_word(name): value for value, name in names.items()}
    has_masks = any(case.masks for case in dataset.cases)
    if has_masks:  # their numbers are ours, so that names alone say which labels they are
        given = {name: name for name in declared.values() if _word(name) in by_word} | dict(given)
    mapping = {_word(name): by_word.get(_word(target)) for name, target in given.items()}
    values, result = [], {}
    for value, name in declared.items():
        target = mapping.get(_word(name))
        if target is None:
            if has_masks:
                findings.error(f"masks of {name!r} are no label of the federation: map them by labels_map in site.yaml")
            else:
                _compare_label(value, name, declared, wanted, findings)
            target = value
        if target != value:
            values.append((value, target))
        if target:
            result[target] = name if mapping.get(_word(name)) is None else wanted[target]
    stays = {value for value, name in declared.items() if mapping.get(_word(name)) is None and not has_masks}
    for value, target in values:
        if target in stays:
            findings.error(f"site.yaml: labels_map gives label {value} the value {target}, which another label has")
    return tuple(values), result


def _compare_label(
    value: int, name: str, declared: Mapping[int, str], wanted: Mapping[int, str], findings: _Findings
) -> None:
    by_word = {_word(other): number for number, other in wanted.items()}
    advice = "map them by name: labels_map in site.yaml"
    other, there = by_word.get(_word(name)), wanted.get(value, "nothing")
    if other == value:
        return
    text = f"label {value} is {name!r} here, and {there!r} in the federation"
    if other is not None:
        findings.error(f"{text}, where {name!r} has the value {other}; {advice}")
    elif value not in wanted:
        findings.warning(f"label {value} ({name}) is not in the federation; {advice}, or to {BACKGROUND}")
    elif _index(there, declared.values()) or _opposed(name, there):
        findings.error(f"{text}; if they are the same, {advice}")
    elif not _is_generic(name) and not _is_generic(there):
        findings.warning(f"{text}: are they the same? If not, {advice}")


def _map_channels(
    dataset: Dataset, wanted: tuple[str, ...] | None, given: Mapping[str, str], findings: _Findings
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the stored channels in the wanted order, empty if as stored, and their names."""
    found = dataset.channels
    if wanted is None:
        return (), found
    findings.check_map("channels_map", given, found, wanted)
    mapped = {_word(name): target for name, target in given.items()}
    names = tuple(mapped.get(_word(name), name) for name in found)
    advice = "map them by name: channels_map in site.yaml"
    words, targets = [_word(name) for name in names], [_word(name) for name in wanted]
    if given and set(targets) <= set(words):
        order = tuple(words.index(target) for target in targets)
        return (() if order == tuple(range(len(found))) else order), wanted
    if len(found) != len(wanted):
        findings.error(
            f"{counted(len(found), 'channel')} here ({', '.join(found)}), {len(wanted)} in the federation "
            f"({', '.join(wanted)}); if all of them are here, {advice}"
        )
        return (), found
    for place, (name, target) in enumerate(zip(names, wanted, strict=True)):
        if _word(name) == _word(target):
            continue
        text = f"channel {place} is {name!r} here, and {target!r} in the federation"
        moved = _word(name) in targets or _word(target) in words
        if moved or (_kinds(name) and _kinds(target) and not _kinds(name) & _kinds(target)):
            findings.error(f"{text}; if all of them are here, {advice}")
        elif not _related(name, target):
            findings.warning(f"{text}: are they the same?")
    return (), found


def _compare_modality(channels: Iterable[str], modality: str, findings: _Findings) -> None:
    words = set().union(*(_tokens(name) for name in channels))
    if modality == "CT" and words & _MR_WORDS and not words & _CT_WORDS:
        text = "is CT, which means Hounsfield units; give other data, or correct modality"
        findings.error(f"declares {', '.join(channels)}, and the federation's modality {text}")
    elif modality == "MR" and words & _CT_WORDS:
        findings.warning(f"declares {', '.join(channels)}, and the federation's modality is MR: is modality: CT meant?")


def _word(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _tokens(name: str) -> set[str]:
    return set(_word(name).split())


def _index(name: str, names: Iterable[str]) -> bool:
    return _word(name) in {_word(other) for other in names}


def _kinds(name: str) -> set[frozenset[str]]:
    return {kind for kind in _SEQUENCES if kind & _tokens(name)}


def _is_generic(name: str) -> bool:
    return _GENERIC.fullmatch(_word(name)) is not None


def _opposed(name: str, other: str) -> bool:
    """Return whether two names differ in nothing but a direction."""
    one, two = _tokens(name), _tokens(other)
    return frozenset(one ^ two) in _OPPOSITES and len(one) == len(two)


def _related(name: str, other: str) -> bool:
    """Return whether two names may mean the same: one says nothing, or has all words of the other."""
    one, two = _tokens(name), _tokens(other)
    return _is_generic(name) or _is_generic(other) or one <= two or two <= one


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
