"""Segments are labels by code, by name where a code is missing, or by the hospital's own word."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.imaging.io.dicom.labels.meaning import assign, own_structures, structure_of
from common.imaging.io.dicom.labels.objects import LabelObject, Meaning, Segment, Structure
from common.imaging.io.dicom.slices import RefusedError

LIVER, SPLEEN = ("SCT", "10200004"), ("SCT", "78961009")
KNOWN = (
    Structure(0, "background", aliases=("Couch",)),
    Structure(1, "liver", LIVER),
    Structure(2, "spleen", SPLEEN, aliases=("Milz",)),
    Structure(3, "Left kidney"),
)


def segment(name: str, code: tuple[str, str] | None = None, number: int = 1) -> Segment:
    return Segment(number, name, None if code is None else Meaning(*code, "words"), by_program=False)


def labels(name: str, *segments: Segment) -> LabelObject:
    return LabelObject(Path(name), "BINARY", "1", "2", frozenset(), frozenset(), segments)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (segment("anything", LIVER), 1),
        (segment("spleen", LIVER), 1),
        (segment("LIVER"), 1),
        (segment("liver", ("99LOCAL", "7")), None),
        (segment("left_KIDNEY", ("99LOCAL", "7")), 3),
        (segment("kidney"), None),
        (segment("milz", LIVER), 2),
        (segment("couch"), 0),
        (segment("x", ("SRT", "T-62000")), 1),
        (segment("x", ("SRT", "T-C3000")), 2),
        (segment(""), None),
    ],
    ids=str,
)
def test_a_segment_is_at_most_one_label(found: Segment, value: int | None) -> None:
    structure = structure_of(found, KNOWN)
    assert (None if structure is None else structure.value) == value


def test_what_matches_nothing_and_what_is_missing_is_told() -> None:
    found = assign([labels("a", segment("liver", number=4), segment("gallbladder", number=5))], KNOWN)
    assert found.values == [{4: 1}]
    assert [one.name for one in found.ignored] == ["gallbladder"]
    assert [one.value for one in found.missing] == [2, 3]


def test_files_with_different_labels_are_merged_and_with_the_same_refused() -> None:
    one, two = labels("a.dcm", segment("liver"), segment("fat", number=2)), labels("b.dcm", segment("x", SPLEEN))
    assert assign([one, two], KNOWN).values == [{1: 1}, {1: 2}]
    with pytest.raises(RefusedError, match=r"label 1 \(liver\) is in a.dcm and in b.dcm: keep one of them"):
        assign([one, labels("b.dcm", segment("x", LIVER))], KNOWN)


def test_without_a_federation_equal_segments_are_one_label_in_order_of_names() -> None:
    objects = [
        labels("a", segment("Spleen", SPLEEN), segment("Liver", LIVER, 2)),
        labels("b", segment("Leber", LIVER), segment("fat", None, 2), segment("FAT", None, 3)),
    ]
    assert own_structures(objects) == (
        Structure(1, "fat"),
        Structure(2, "Liver", LIVER),
        Structure(3, "Spleen", SPLEEN),
    )
