"""The Basic Profile, attribute by attribute, against the table of the standard."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from client.deidentify import attributes
from client.deidentify.choices import Choices
from tests.client.deidentify.made import Row, deidentified, elements, one_image, outside_pixels, read, rows

STRICT = Choices(dates="removed", device="removed")
TRACE = "Qzzyx"  # in no vocabulary and in no other value
VALUES = {
    "AE": "QZZYX",
    "AS": "033Y",
    "CS": "QZZYX",
    "DA": "19710203",
    "DS": "71.5",
    "DT": "19710203040506",
    "FD": 71.5,
    "IS": "7153",
    "LO": TRACE,
    "LT": TRACE,
    "OB": b"Qzzyx ",
    "PN": f"{TRACE}^Wvvuut",
    "SH": TRACE,
    "ST": TRACE,
    "TM": "040506",
    "UC": TRACE,
    "UI": "1.2.3.4.5678",
    "UN": b"Qzzyx ",
    "UR": TRACE,
    "US": 715,
    "UT": TRACE,
}
SAME = "same"
PRIVATE, CURVE, OVERLAY = Tag(0x00091001), Tag(0x50003000), Tag(0x60003000)


def plant(dataset: Dataset, row: Row) -> None:
    kind = dictionary_VR(row.tag) if dictionary_has_tag(row.tag) else "LO"
    if kind == "SQ":
        item = Dataset()
        item.add_new("PatientName", "PN", VALUES["PN"])
        item.add_new("ReferencedSOPInstanceUID", "UI", VALUES["UI"])
        dataset.add_new(row.tag, kind, Sequence([item]))
    else:
        dataset.add_new(row.tag, kind, VALUES[kind])


def with_everything() -> Dataset:
    """An image with every attribute of the table that a dataset may have, at its top and nested in a kept sequence."""
    one, item = one_image(), Dataset()
    for dataset in (one, item):
        for row in rows():
            if row.tag not in {Tag("SOPInstanceUID")} and row.tag.group >= 8:
                plant(dataset, row)
        dataset.add_new(0x00090010, "LO", f"{TRACE} creator")
        dataset.add_new(PRIVATE, "LO", TRACE)
        dataset.add_new(CURVE, "OB", b"Qzzyx ")
        dataset.add_new(OVERLAY, "OB", b"Qzzyx ")
    one.DerivationImageSequence = [item]
    return one


def has_only_others(element: DataElement, original: DataElement) -> bool:
    """Whether a value says nothing of the original one."""
    return element.value in (None, "", []) or (element.value != original.value and TRACE not in str(element.value))


def satisfies(row: Row, before: DataElement, after: DataElement | None, days: int | None, device: str) -> bool:
    """Whether what became of an attribute is what the table demands.

    An attribute that should be emptied or get a dummy may be gone as a whole: then nothing of it is left.
    """
    if after is None:
        return True
    if days is not None and row.options.get("dates") == "C":
        return after.VR == "TM" or moved(str(before.value), days) == after.value
    if device == "kept" and row.options.get("device") == "K":
        return True
    if row.options.get("descriptors") == "C" or row.tag == Tag("ROIName"):
        return has_only_others(after, before)
    if row.action in {"X/Z/U*", "U"}:
        return TRACE not in str(after.value) and VALUES["UI"] not in str(after.value)
    return row.action != "X" and has_only_others(after, before)


def moved(value: str, days: int) -> str:
    return (datetime.strptime(value[:8], "%Y%m%d") - timedelta(days)).strftime("%Y%m%d") + value[8:]


@pytest.mark.parametrize("choices", [Choices(), STRICT, Choices(dates="removed"), Choices(device="removed")], ids=str)
def test_every_attribute_of_the_table_is_treated_as_it_demands(tmp_path: Path, choices: Choices) -> None:
    original = with_everything()
    made = deidentified(tmp_path, original, choices)
    result = read(made.content)
    (item,) = result.DerivationImageSequence
    days = None
    if choices.dates == "shifted":
        days = (datetime(1971, 2, 3) - datetime.strptime(result.StudyDate, "%Y%m%d")).days
        assert 30 <= days <= 3650
    for row in rows():
        for before, after in ((original, result), (original.DerivationImageSequence[0], item)):
            if row.tag in before:
                assert satisfies(row, before[row.tag], after.get(row.tag), days, choices.device), row
    assert not [element for element in elements(result) if element.tag.is_private or element.tag.group >= 0x5000][1:]


def test_nothing_of_the_strictest_profile_is_left_in_the_bytes(tmp_path: Path) -> None:
    found = outside_pixels(deidentified(tmp_path, with_everything(), STRICT).content)
    for trace in (b"qzzyx", b"wvvuut", b"1971", b"040506", b"1.2.3.4.5678", b"033y"):
        assert trace not in found


def test_the_positive_list_and_the_table_share_only_what_an_option_or_a_replacement_covers() -> None:
    shared = {row.tag: row for row in rows() if attributes.is_kept(row.tag)}
    assert {row.action for row in shared.values()} == {"U", "X/Z/U*", "Z"}
    assert [tag for tag, row in shared.items() if row.action == "Z"] == [Tag("ROIName")]
    for row in rows():
        assert row.tag not in attributes.TIMES or row.options.get("dates") == "C"
        assert row.tag not in attributes.DEVICE or row.options.get("device") == "K"
        assert row.tag not in attributes.DESCRIPTIONS or row.options.get("descriptors") == "C"


def test_the_file_says_how_it_was_de_identified(tmp_path: Path) -> None:
    for choices, codes, dates in (
        (Choices(), ["113100", "113105", "113107", "113109"], "MODIFIED"),
        (STRICT, ["113100", "113105"], "REMOVED"),
    ):
        result = read(deidentified(tmp_path, one_image(), choices).content)
        assert result.PatientIdentityRemoved == "YES" and "PS3.15" in result.DeidentificationMethod
        assert [code.CodeValue for code in result.DeidentificationMethodCodeSequence] == codes
        assert {code.CodingSchemeDesignator for code in result.DeidentificationMethodCodeSequence} == {"DCM"}
        assert result.LongitudinalTemporalInformationModified == dates


def test_times_that_an_object_must_have_get_a_dummy(tmp_path: Path) -> None:
    one = one_image(StudyDate="20200102", ContentDate="20200102", ContentTime="0102", AcquisitionDateTime="20200102")
    result = read(deidentified(tmp_path, one, STRICT).content)
    assert (result.StudyDate, result.ContentDate, result.ContentTime) == ("", "19000101", "000000")
    assert result.AcquisitionDateTime == "19000101000000"


@pytest.mark.parametrize(
    ("keyword", "before", "after"),
    [
        ("StudyDate", "2020.01.31", ""),  # as before 1993
        ("StudyDate", "20201301", None),
        ("StudyDate", "last week", None),
        ("StudyDate", "00010102", None),
        ("StudyDate", "", SAME),
        ("AcquisitionDateTime", "20200131235959.5+0100", "235959.5"),
        ("AcquisitionDateTime", "2020", None),
        ("AcquisitionTime", "Smith", None),
        ("AcquisitionTime", "12:34:56.789", SAME),
    ],
)
def test_dates_are_moved_and_what_is_none_is_removed(
    tmp_path: Path, keyword: str, before: str, after: str | None
) -> None:
    one = one_image(PatientID="moving", SeriesDate="20200131")
    one[keyword] = DataElement(keyword, dictionary_VR(Tag(keyword)), before, validation_mode=0)
    result = read(deidentified(tmp_path, one).content)
    if after is None:
        assert keyword not in result
    elif after == SAME:
        assert result[keyword].value == before
    else:
        assert result[keyword].value == result.SeriesDate + after
