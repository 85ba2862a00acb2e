"""Traces of a patient: what identifies them in the original, looked for in everything that is kept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from client.deidentify.kinds import is_registered
from client.deidentify.vocabulary import without_words_of_the_field
from common.imaging.io.dicom.values import tag_of

_IDENTIFIERS = frozenset(
    map(
        tag_of,
        (
            *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "ServiceEpisodeID"),
            *("MedicalRecordLocator", "InsurancePlanIdentification", "RequestedProcedureID", "SpecimenAccessionNumber"),
            *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
            *("ScheduledProcedureStepID", "PerformedProcedureStepID", "ClinicalTrialSubjectID"),
            *("ClinicalTrialSubjectReadingID", "PatientAddress", "PatientTelephoneNumbers"),
            *("PatientTelecomInformation", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
            *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "ResponsibleOrganization"),
            *("ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "CurrentPatientLocation"),
            *("PatientInstitutionResidence", "RegionOfResidence"),
        ),
    )
)
_PLACES = frozenset(
    map(
        tag_of,
        (
            *("PatientAddress", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
            *("ResponsibleOrganization", "ReferringPhysicianAddress", "CurrentPatientLocation"),
            *("PatientInstitutionResidence", "RegionOfResidence"),
        ),
    )
)
"""Those of them whose words identify too."""
_LETTERS = re.compile(r"[^\W\d_]+")
_FEWEST_LETTERS, _FEWEST_SIGNS, _FEWEST_DIGITS = 3, 2, 4
"""Of a name in an alphabet, of one in Chinese characters, and of a number: shorter ones occur everywhere by chance."""
_FEWEST_OF_PLACE = 4
_FIRST_SIGN = "\N{CJK RADICAL REPEAT}"
_LONG_NAME = 5
_LONG, _LONG_NUMBER = 6, 8
"""Characters from which a name, or any identifier, is looked for within other words too."""
_BETWEEN = r"[\W_]{0,3}"
"""What people write between the characters of an identifier."""
_BORDER = re.compile(
    r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)"
)
"""Where words adjoin that are written as one: LeeTumor, GTVLee, Lee2."""
_SPELLED = str.maketrans({"ł": "l", "đ": "d", "ð": "d", "ı": "i", "ø": "o", "æ": "a", "œ": "o", "þ": "th"})
_UMLAUT = re.compile("(?<=[aou])e|(?<=a)a")
_UID = re.compile(r"\d+(?:\.\d+)+")
_SHORTEST_DAY = 6


class Traces:
    """What identifies the patient, their physicians and the hospital in an instance.

    Parameters
    ----------
    dataset
        The original, with everything in it: sequences and private elements are searched too.

    Attributes
    ----------
    names
        Parts of the names of all persons, in lower case, and as they are compared.
    uids
        All UIDs that are not the standard's own.
    """

    def __init__(self, dataset: Dataset) -> None:
        names: set[str] = set()
        identifiers: set[str] = set()
        uids: set[str] = set()
        days: set[str] = set()
        self._bytes: set[bytes] = set()
        for tag, kind, text in _texts(dataset):
            if kind == "UI" and not is_registered(text):
                uids.add(text)
            if kind in {"DA", "DT"}:
                days.add(text.replace(".", "")[:8])
            elif kind == "PN" or tag in _IDENTIFIERS:
                self._note_bytes(text)
            if kind == "PN":
                names.update(_parts(text))
                for part in _LETTERS.findall(text):
                    self._note_bytes(part)
            elif tag in _IDENTIFIERS and kind not in {"DA", "DT"}:
                identifiers.update(_identifiers(text))
            if tag in _PLACES:
                names.update(part for part in _parts(text) if len(part) >= _FEWEST_OF_PLACE or part >= _FIRST_SIGN)
        self.names, self.uids = frozenset(names), frozenset(uids)
        spelled = frozenset(spelling for day in days for spelling in _spellings(day))
        self._numbers = spelled | {one for one in identifiers if one.isdigit() and len(one) >= _LONG}
        self._names = _any_of([_name_pattern(name) for name in sorted(names)])
        self._identifiers = _any_of([_identifier_pattern(one) for one in sorted(identifiers | spelled)])

    def are_in_text(self, text: str) -> bool:
        """Return whether an identifier, or a name that is no word of the field, occurs in a text."""
        if not self.uids.isdisjoint(_UID.findall(text)):
            return True
        if self._identifiers and self._identifiers.search(_normal(text)):
            return True
        ways = (text, _BORDER.sub(" ", unicodedata.normalize("NFKC", text)))
        return any(self._names and self._names.search(_normal(without_words_of_the_field(way))) for way in ways)

    def are_in_numbers(self, text: str) -> bool:
        """Return whether one of several numbers, with backslashes between them, is a long identifier or a date."""
        return any(_whole(part) in self._numbers for part in text.split("\\") if len(part) >= _SHORTEST_DAY)

    def are_in_bytes(self, data: bytes) -> bool:
        """Return whether a long identifier or name occurs in bytes of any meaning, in any case of letters."""
        lower = data.lower()
        return any(needle in lower for needle in self._bytes)

    def _note_bytes(self, text: str) -> None:
        for encoding in ("utf-8", "latin-1", "shift_jis", "utf-16-le", "utf-16-be"):
            found = text.strip().lower().encode(encoding, "ignore").lower()
            if len(found) >= _LONG and without_words_of_the_field(text).strip():
                self._bytes.add(found)


def _texts(dataset: Dataset) -> Iterator[tuple[BaseTag, str, str]]:
    """Yield names, UIDs, dates, and all values of ``_IDENTIFIERS``, at any depth, with their types."""
    for tag in list(dataset.keys()):
        kind = dataset.get_item(tag).VR
        if kind in {None, "UN"} and dictionary_has_tag(tag):
            kind = dictionary_VR(tag)
        if kind == "SQ":
            for item in dataset[tag].value or ():
                yield from _texts(item)
        elif kind in {"PN", "UI", "DA", "DT"} or tag in _IDENTIFIERS:
            value = dataset[tag].value
            several = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
            yield from ((tag, kind, str(one)) for one in several if one)


def _normal(text: str) -> str:
    """Return a text in the one spelling in which texts are compared: Müller, MUELLER and Muller are the same."""
    spelled = unicodedata.normalize("NFKC", text).casefold().translate(_SPELLED)
    plain = "".join(one for one in unicodedata.normalize("NFKD", spelled) if not unicodedata.combining(one))
    return " ".join(_UMLAUT.sub("", unicodedata.normalize("NFC", plain)).split())


def _parts(name: str) -> Iterator[str]:
    for group in unicodedata.normalize("NFKC", name).split("="):
        parts = _LETTERS.findall(group)
        for part in [*parts, "".join(part for part in parts if part >= _FIRST_SIGN)]:
            if len(part) >= _FEWEST_LETTERS or (len(part) >= _FEWEST_SIGNS and part >= _FIRST_SIGN):
                yield from {_normal(part), part.casefold()}


def _identifiers(text: str) -> Iterator[str]:
    one = "".join(character for character in _normal(text) if character.isalnum())
    long_enough = len(one) >= (_FEWEST_DIGITS if one.isdigit() else _FEWEST_LETTERS)
    if long_enough and without_words_of_the_field(_normal(text)).strip():
        yield one


def _spellings(day: str) -> Iterator[str]:
    """Yield a date, as people write it, without what they write between its parts."""
    year, month, date = day[:4], day[4:6], day[6:]
    if not (day.isdecimal() and len(day) == 8):
        return
    for one in (year, year[2:]):
        yield from (one + month + date, date + month + one, month + date + one)
        if len(one) == 4:
            short_month, short_date = month.lstrip("0"), date.lstrip("0")
            yield from (found for found in (short_date + short_month + one, short_month + short_date + one))


def _whole(part: str) -> str:
    try:
        return f"{abs(float(part)):.0f}" if float(part).is_integer() else ""
    except ValueError:
        return ""


def _name_pattern(name: str) -> str:
    """Return a pattern that finds a short name only where no further letter adjoins it.

    Chinese characters stand without spaces between words.
    """
    is_found_within = len(name) >= _LONG_NAME or name >= _FIRST_SIGN
    return re.escape(name) if is_found_within else rf"(?<![^\W\d_]){re.escape(name)}(?![^\W\d_])"


def _identifier_pattern(one: str) -> str:
    """Return a pattern for an identifier; numbers that are not very long occur within longer ones by chance."""
    found = _BETWEEN.join(map(re.escape, one))
    if one.isdigit():
        return found if len(one) >= _LONG_NUMBER else rf"(?<!\d)0*{found}(?!\d)"
    return found if len(one) >= _LONG else rf"(?<![^\W_]){found}(?![^\W_])"


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(patterns)) if patterns else None
