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
            *("ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "PatientBirthDate"),
        ),
    )
)
_LETTERS = re.compile(r"[^\W\d_]+")
_FEWEST_LETTERS, _FEWEST_SIGNS, _FEWEST_DIGITS = 3, 2, 4
"""Of a name in an alphabet, of one in Chinese characters, and of a number: shorter ones occur everywhere by chance."""
_FIRST_SIGN = "\N{CJK RADICAL REPEAT}"
_SPELLED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "å": "aa", "ø": "oe", "æ": "ae"})
_LONG_NAME = 5
_LONG, _LONG_NUMBER = 6, 8
"""Characters from which a name, or any identifier, is looked for within other words too."""


class Traces:
    """What identifies the patient, their physicians and the hospital in an instance.

    Parameters
    ----------
    dataset
        The original, with everything in it: sequences and private elements are searched too.

    Attributes
    ----------
    names
        Parts of the names of all persons, normalised.
    uids
        All UIDs that are not the standard's own.
    """

    def __init__(self, dataset: Dataset) -> None:
        names: set[str] = set()
        identifiers: set[str] = set()
        uids: set[str] = set()
        self._bytes: set[bytes] = set()
        for tag, kind, text in _texts(dataset):
            if kind == "UI" and not is_registered(text):
                uids.add(text)
            if kind == "UI" and tag not in _IDENTIFIERS:
                continue
            self._note_bytes(text)
            if tag in _IDENTIFIERS:
                identifiers.update(_identifiers(text))
                continue
            names.update(_parts(text))
            for part in _LETTERS.findall(text):
                self._note_bytes(part)
        self.names, self.uids = frozenset(names), frozenset(uids)
        self._numbers = frozenset(one for one in identifiers if one.isdigit() and len(one) >= _LONG)
        self._names = _any_of([_pattern(name, _LONG_NAME, r"[^\W\d_]") for name in names])
        self._identifiers = _any_of([_pattern(one, _LONG, r"[^\W_]") for one in identifiers])

    def are_in_text(self, text: str) -> bool:
        """Return whether an identifier, or a name that is no word of the field, occurs in a text."""
        if self._identifiers and self._identifiers.search(_normal(text)):
            return True
        return bool(self._names and self._names.search(_normal(without_words_of_the_field(text))))

    def are_in_numbers(self, text: str) -> bool:
        """Return whether one of several numbers, with backslashes between them, is a long identifier."""
        return not self._numbers.isdisjoint(part.strip() for part in text.split("\\"))

    def are_in_bytes(self, data: bytes) -> bool:
        """Return whether a long identifier or name occurs in bytes of any meaning, in any case of letters."""
        lower = data.lower()
        return any(needle in lower for needle in self._bytes)

    def _note_bytes(self, text: str) -> None:
        for encoding in ("utf-8", "latin-1", "shift_jis"):
            found = text.strip().encode(encoding, "ignore").lower()
            if len(found) >= _LONG and without_words_of_the_field(text).strip():
                self._bytes.add(found)


def _texts(dataset: Dataset) -> Iterator[tuple[BaseTag, str, str]]:
    """Yield all names of persons, all UIDs, and all values of ``_IDENTIFIERS``, at any depth, with their types."""
    for tag in list(dataset.keys()):
        kind = dataset.get_item(tag).VR
        if kind in {None, "UN"} and dictionary_has_tag(tag):
            kind = dictionary_VR(tag)
        if kind == "SQ":
            for item in dataset[tag].value or ():
                yield from _texts(item)
        elif kind in {"PN", "UI"} or tag in _IDENTIFIERS:
            value = dataset[tag].value
            several = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
            yield from ((tag, kind, str(one)) for one in several if one)


def _normal(text: str) -> str:
    plain = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return " ".join(plain.casefold().split())


def _parts(name: str) -> Iterator[str]:
    for part in _LETTERS.findall(unicodedata.normalize("NFC", name)):
        if len(part) >= _FEWEST_LETTERS or (len(part) >= _FEWEST_SIGNS and part >= _FIRST_SIGN):
            yield from {_normal(part), _normal(part.casefold().translate(_SPELLED))}


def _identifiers(text: str) -> Iterator[str]:
    one = _normal(text)
    if one.isdigit() and len(one) == 8:  # a date of birth, as people write it
        year, month, day = one[:4], one[4:6], one[6:]
        yield from (f"{year}-{month}-{day}", f"{day}.{month}.{year}", f"{month}/{day}/{year}", f"{day}{month}{year}")
    long_enough = len(one) >= (_FEWEST_DIGITS if one.isdigit() else _FEWEST_LETTERS)
    if long_enough and without_words_of_the_field(one).strip():
        yield one


def _pattern(needle: str, long: int, character: str) -> str:
    """Return a pattern that finds a short text only where no further character of its kind adjoins it.

    Chinese characters stand without spaces between words. Numbers that are not very long occur within codes by chance.
    """
    escaped = re.escape(needle)
    if needle.isdigit() and long <= len(needle) < _LONG_NUMBER:
        return rf"(?<!\d)0*{escaped}(?!\d)"
    return escaped if len(needle) >= long or needle >= _FIRST_SIGN else rf"(?<!{character}){escaped}(?!{character})"


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(patterns)) if patterns else None
