"""What a result takes over from the series that it was made from: references, patient and study.

Archives hold values that the standard does not allow. Patient and study of a result are those of its source, but for
values that would make the result itself invalid: these are left empty, and told by name. Without valid UIDs nothing can
refer to an instance, and without its PatientID a result is nobody's, so there are no DICOM results then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.charset import convert_encodings, python_encoding
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value
from pydicom.values import convert_value

from client.inference.dicom.elements import with_elements
from client.pacs.address import is_uid
from common.errors import DataError
from common.imaging.geometry import Grid
from common.imaging.io.dicom.elements import read_elements
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.slices import Series
from common.imaging.io.dicom.values import is_plain, tag_of, text

REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Elements that every result has, empty if unknown."""

OPTIONAL = (
    *("IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
)
"""Elements that a result has if its source has them."""

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_METHOD_CODES = "DeidentificationMethodCodeSequence"
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")

UNICODE = "ISO_IR 192"

_MOST_DIGITS = 6
_TERMS = {"PatientSex": ("M", "F", "O"), "PatientIdentityRemoved": ("YES", "NO")}
_ASCII = frozenset({"", "ISO_IR 6", "ISO 2022 IR 6"})
_SEVERAL = frozenset({"DeidentificationMethod", *_LOSSY})
"""Elements that may have several values."""
_TEXTS = frozenset({"LO", "PN", "SH"})
_OF_EACH = ("SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet", *_LOSSY)
_ADVICE = "write NIfTI instead: --format nifti"


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """Where a slice of the source is stored.

    Attributes
    ----------
    instance, kind
        UIDs of the instance and of its SOP class.
    number
        Frame number from 1, if the instance is a multi-frame image; else None.
    """

    instance: str
    kind: str
    number: int | None


@dataclass(frozen=True)
class Source:
    """A series, or the part of it that makes up one volume, as its results refer to it.

    Attributes
    ----------
    series
        The series.
    frame_of_reference
        UID; empty if it is missing.
    frames
        In order of the volume's slices.
    values
        Patient and study: keyword -> valid value.
    character_set
        Defined terms of the source's character set; empty for ASCII.
    deidentification
        Value, scheme and meaning of each code of how it was de-identified.
    compression
        Keyword -> value of what says that any of its instances was once compressed with loss; empty if none was.
    emptied
        Keywords of patient and study of which results cannot have the value.
    """

    series: Series
    frame_of_reference: str
    frames: tuple[SourceFrame, ...]
    values: dict[str, str]
    character_set: tuple[str, ...]
    deidentification: tuple[tuple[str, ...], ...]
    compression: dict[str, str]
    emptied: tuple[str, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        """What people should know of results."""
        if not self.emptied:
            return ()
        why = "the standard does not allow the value, or it is not in the declared character set"
        return (f"{self.series.title}: results are without {', '.join(self.emptied)}: {why}",)

    @property
    def grid(self) -> Grid:
        """Columns, rows and slices of the volume, in RAS+."""
        if self.series.grid is None:
            raise ValueError(f"{self.series.title} is no volume")
        return self.series.grid

    @property
    def instances(self) -> dict[str, str]:
        """UID of each instance -> UID of its SOP class."""
        return {frame.instance: frame.kind for frame in self.frames}

    def patient_and_study(self) -> Dataset:
        """Return a new data set with patient and study."""
        known = {keyword: value or None for keyword, value in self.values.items() if value or keyword in REQUIRED}
        found = with_elements(Dataset(), StudyInstanceUID=self.series.study, **known)
        if self.deidentification:
            items = [with_elements(Dataset(), **dict(zip(_CODE, one, strict=True))) for one in self.deidentification]
            with_elements(found, **{_METHOD_CODES: items})
        return found

    def result_number(self, offset: int) -> int:
        """Return the number of a result's series: 701, 702, ... for series 7."""
        number = self.series.number
        return 100 * (int(number) if number.isdecimal() and len(number) <= _MOST_DIGITS else 0) + offset

    def character_set_for(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the source's character set if it can hold the source's values and other texts too, else Unicode."""
        found = "\n".join(texts)
        if found.isascii() and all(value.isascii() for value in self.values.values()):
            return self.character_set
        return self.character_set if _can_hold(self.character_set, self.values, found) else (UNICODE,)


def read_source(series: Series) -> Source:
    """Read what results of a series take over from it; the headers of all of its files are read.

    Raises
    ------
    DataError
        Nothing can refer to the series, because UIDs are missing or invalid; no result can have its PatientID; or a
        file cannot be read.
    """
    _require_uid(series.folder, series, "StudyInstanceUID", series.study)
    _require_uid(series.folder, series, "SeriesInstanceUID", series.uid)
    first = series.slices[0]
    headers: dict[Path, Dataset] = {}
    for one in series.slices:
        if one.path not in headers:
            headers[one.path] = _read(
                one.path, (*_OF_EACH, *REQUIRED, *OPTIONAL, _METHOD_CODES) if one.path == first.path else _OF_EACH
            )
    instances = {path: (text(one, "SOPInstanceUID"), text(one, "SOPClassUID")) for path, one in headers.items()}
    for path, (instance, _) in instances.items():
        _require_uid(path, series, "SOPInstanceUID", instance)
    frames = tuple(
        SourceFrame(*instances[one.path], number=one.frame + 1 if _is_multi_frame(instances[one.path][1]) else None)
        for one in series.slices
    )
    header = headers[first.path]
    character_set = _character_set(header)
    values = {keyword: _valid_value(header, keyword, character_set) for keyword in (*REQUIRED, *OPTIONAL)}
    codes = _codes(header, _METHOD_CODES)
    if not (values["PatientIdentityRemoved"] and (values["DeidentificationMethod"] or codes)):  # one needs the other
        values |= {"PatientIdentityRemoved": "", "DeidentificationMethod": ""}
        codes = ()
    emptied = tuple(keyword for keyword, value in values.items() if not value and _is_filled(header, keyword))
    if "PatientID" in emptied:
        rule = "at most 64 characters of the declared character set, without backslash"
        problem = f"has a PatientID that no DICOM object may have ({rule}), so that results would be nobody's"
        raise DataError(first.path, f"{series.title}: {problem}; correct it, or {_ADVICE}")
    reference = first.frame_of_reference if is_uid(first.frame_of_reference) else ""
    return Source(series, reference, frames, values, character_set, codes, _compression(headers.values()), emptied)


_MULTI_FRAME = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2\.[12]|4\.[14]|128\.1|130)")


def _is_multi_frame(kind: str) -> bool:
    return _MULTI_FRAME.fullmatch(kind) is not None


def _read(path: Path, keywords: Iterable[str]) -> Dataset:
    with refused_as_damaged(path), path.open("rb") as file:
        return read_elements(file, [tag_of(keyword) for keyword in keywords])


def _require_uid(path: Path, series: Series, keyword: str, value: str) -> None:
    if not is_uid(value):
        problem = f"has no {keyword}" if not value else f"has a {keyword} that is none"
        raise DataError(path, f"{series.title}: {problem}, so that no DICOM object can refer to it; {_ADVICE}")


def _character_set(header: Dataset) -> tuple[str, ...]:
    """Return the declared terms if all of them are defined ones; empty for ASCII."""
    terms = tuple(term.strip() for term in text(header, "SpecificCharacterSet").split("\\"))
    return terms if not set(terms) <= _ASCII and all(term in python_encoding for term in terms) else ()


def _compression(headers: Iterable[Dataset]) -> dict[str, str]:
    """Return flag, ratios and methods of the first instance that was compressed with loss, as far as they are valid."""
    for header in headers:
        found = {keyword: text(header, keyword) for keyword in _LOSSY}
        if found["LossyImageCompression"] == "01":
            return {keyword: value for keyword, value in found.items() if value and _is_valid(keyword, value)}
    return {}


def _codes(header: Dataset, keyword: str) -> tuple[tuple[str, ...], ...]:
    """Return the valid codes of a sequence in plain letters."""
    try:
        found = [tuple(text(item, part) for part in _CODE) for item in header.get(keyword) or ()]
    except Exception:  # whatever a damaged value makes of pydicom's conversions
        return ()
    return tuple(one for one in found if all(map(_is_valid, _CODE, one)) and all(one) and "".join(one).isascii())


def _is_filled(header: Dataset, keyword: str) -> bool:
    """Return whether an element has any value, valid or not."""
    element = header.get_item(tag_of(keyword))
    value = None if element is None else element.value
    return bool(value.strip(b"\0 ") if isinstance(value, bytes) else str(value or "").strip("\0 "))


def _valid_value(header: Dataset, keyword: str, character_set: tuple[str, ...]) -> str:
    """Return a value as text; empty if it is missing or not valid."""
    element = header.get_item(tag_of(keyword))
    if not isinstance(element, RawDataElement):
        found = str(element.value or "") if element is not None else ""
        plain = character_set or found.isascii()
        return found if plain and _is_valid(keyword, found) else ""
    raw = element.value or b""
    kind = dictionary_VR(element.tag)
    if is_plain(raw):
        found = raw.decode("ascii")
    elif kind in _TEXTS and character_set:
        found = str(convert_value(kind, element, convert_encodings(list(character_set))))
    else:
        return ""
    found = found.strip("\0 ")
    return found if _is_valid(keyword, found) else ""


def _is_valid(keyword: str, value: str) -> bool:
    """Return whether the standard allows this value, or these values, of an element."""
    if keyword in _SEVERAL and "\\" in value:
        return all(_is_valid(keyword, part) for part in value.split("\\"))
    if not value.isprintable() or "\\" in value or "\N{REPLACEMENT CHARACTER}" in value:
        return False
    kind = dictionary_VR(tag_of(keyword))
    if value and value not in _TERMS.get(keyword, (value,)):
        return False
    if kind == "DA" and value:
        try:
            datetime.strptime(value, "%Y%m%d")
        except ValueError:
            return False
    if kind == "TM" and "-" in value:  # a range, for queries only
        return False
    try:
        validate_value(kind, value, RAISE)
    except ValueError:
        return False
    return True


def _can_hold(character_set: tuple[str, ...], values: dict[str, str], texts: str) -> bool:
    """Return whether texts written in a character set are read as they were."""
    if not character_set:
        return False
    written = {"TextValue": texts} | {keyword: value for keyword, value in values.items() if value}
    content = with_elements(Dataset(), SpecificCharacterSet=list(character_set), **written)
    with BytesIO() as buffer:
        content.save_as(buffer, implicit_vr=True, little_endian=True)
        buffer.seek(0)
        again = pydicom.dcmread(buffer, force=True)
    return all(str(again.get(keyword)) == value for keyword, value in written.items())
