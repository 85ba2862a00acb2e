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
    Structure(4, "l\u00e9sion"),
)


def segment(name: str, code: tuple[str, str] | None = None, number: int = 1, side: str = "") -> Segment:
    details = (Meaning("SCT", side, side),) if side else ()
    return Segment(number, name, None if code is None else Meaning(*code, "words"), False, details)


def labels(name: str, *segments: Segment) -> LabelObject:
    return LabelObject(Path(name), "BINARY", "1", "2", frozenset(), frozenset(), segments)


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (segment("anything", LIVER), 1),
        (segment("liver", LIVER), 1),
        (segment("liver", ("SCT", "85756007")), 1),
        (segment("anything", ("SCT", "85756007")), None),
        (segment("left-kidney"), None),
        (segment("left kidney?"), None),
        (segment("LE\u0301SION"), 4),
        (segment("LIVER"), 1),
        (segment("liver", ("99LOCAL", "7")), None),
        (segment("left_KIDNEY", ("99LOCAL", "7")), 3),
        (segment("kidney"), None),
        (segment("milz", LIVER), 2),
        (segment("couch"), 0),
        (segment("x", ("SRT", "T-62000")), 1),
        (segment("x", ("SNM3", "T-62000")), 1),
        (segment("x", ("99SDM", "T-62000")), 1),
        (segment("x", ("SRT", "T-C3000")), 2),
        (segment(""), None),
    ],
    ids=str,
)
def test_a_segment_is_at_most_one_label(found: Segment, value: int | None) -> None:
    match = structure_of(found, KNOWN)
    assert (None if match is None else match[0].value) == value


@pytest.mark.parametrize("found", [segment("spleen", LIVER), segment("Left Kidney", SPLEEN)], ids=str)
def test_a_code_and_a_name_that_contradict_each_other_are_refused(found: Segment) -> None:
    with pytest.raises(
        RefusedError, match=r"is label \d .* by its code and label \d .* by its name: say what it is in"
    ):
        structure_of(found, KNOWN)


def test_one_code_on_two_sides_is_no_label_until_the_hospital_says_what_it_is() -> None:
    kidneys = labels("a", segment("kidney", LIVER, 1, "Left"), segment("kidney", LIVER, 2, "Right"))
    reason = r"'kidney \(Left\)' .* and 'kidney \(Right\)' .* both are label 1 \(liver\) and differ in side or region"
    with pytest.raises(RefusedError, match=reason):
        assign([kidneys], KNOWN)
    one, other = Structure(1, "left", LIVER, ("kidney (LEFT)",)), Structure(0, "background", None, ("Kidney (Right)",))
    assert assign([kidneys], [other, one]).values == [{1: 1}]
    assert assign([kidneys], [Structure(1, "both", LIVER, ("kidney",))]).values == [{1: 1, 2: 1}]
    assert [one.name for one in own_structures([kidneys])] == ["kidney (Left)", "kidney (Right)"]
    assert assign([kidneys], own_structures([kidneys])).values == [{1: 1, 2: 2}]


def test_what_matches_nothing_and_what_is_missing_is_told() -> None:
    found = assign([labels("a", segment("liver", number=4), segment("gallbladder", number=5))], KNOWN)
    assert found.values == [{4: 1}]
    assert [one.name for one in found.ignored] == ["gallbladder"]
    assert [one.value for one in found.missing] == [2, 3, 4]


def test_files_with_different_labels_are_merged_and_with_the_same_refused() -> None:
    one, two = labels("a.dcm", segment("liver"), segment("fat", number=2)), labels("b.dcm", segment("x", SPLEEN))
    assert assign([one, two], KNOWN).values == [{1: 1}, {1: 2}]
    with pytest.raises(RefusedError, match=r"label 1 \(liver\) is in a.dcm and in b.dcm: keep one of them"):
        assign([one, labels("b.dcm", segment("x", LIVER))], KNOWN)


def test_without_a_federation_segments_of_one_name_and_code_are_one_label_in_order_of_names() -> None:
    objects = [
        labels("a", segment("Spleen", SPLEEN), segment("Liver", LIVER, 2)),
        labels("b", segment("Leber", LIVER), segment("fat", ("SCT", "85756007"), 2), segment("FAT", None, 3)),
    ]
    own = own_structures(objects)
    assert own == (
        Structure(1, "fat"),
        Structure(2, "Leber", LIVER),
        Structure(3, "Liver", LIVER),
        Structure(4, "Spleen", SPLEEN),
    )
    assert [assign([one], own).values for one in objects] == [[{1: 4, 2: 3}], [{1: 2, 2: 1, 3: 1}]]
