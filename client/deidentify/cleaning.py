"""From an original dataset to one that holds only what is on the positive list, each value treated by its type."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date, timedelta

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from client.deidentify import attributes
from client.deidentify.choices import Choices
from client.deidentify.kinds import is_registered
from client.deidentify.pixels import PIXELS
from client.deidentify.traces import Traces
from client.deidentify.vocabulary import (
    SCHEMES,
    TERMS,
    holds_date_or_number,
    words_and_short_codes,
    words_of_models,
    words_of_the_field,
)
from common.imaging.io.dicom.values import tag_of, text

Element = DataElement | RawDataElement
REMOVED = "REMOVED"
"""Stands for a text that held an identifier; valid for all types of text, and for codes."""
_FORMS = {
    "AS": re.compile(r"\d{3}[DWMY]", re.ASCII),
    "CS": re.compile(r"[A-Za-z0-9_ .+/-]{1,16}"),  # some programs write more than capitals
    "DS": re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *", re.ASCII),
    "IS": re.compile(r" *[+-]?\d{1,12} *", re.ASCII),
    "TM": re.compile(r"\d\d(:?\d\d(:?\d\d(\.\d{1,6})?)?)? *", re.ASCII),
}
_SHORT_COUNTER = re.compile(r" *[+-]?\d{0,5} *", re.ASCII)
_A_TOKEN = re.compile(r"\S{0,64}")
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d) *")
_DATE_TIME = re.compile(r"(\d{8})(\d{0,6}(?:\.\d{1,6})?)(?:[+-]\d{4})? *")
_DUMMY_TIMES = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
_SAME = {"US or SS": {"US", "SS"}, "OB or OW": {"OB", "OW"}, "US or OW": {"US", "OW"}}
_NUMBER_BYTES = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "US or SS": 2, "UV": 8}
_MOST_CHARACTERS = {"LO": 64, "SH": 16}
_BLANK = "\0 "
_MODEL = tag_of("ManufacturerModelName")
_MEANING = tag_of("CodeMeaning")


@dataclass(frozen=True)
class Replacements:
    """What stands for the originals in one instance.

    Attributes
    ----------
    patient
        The pseudonym of the patient.
    days
        By how many days dates are moved into the past.
    uid
        Returns the UID that stands for another.
    """

    patient: str
    days: int
    uid: Callable[[str], str]


class Cleaner:
    """Makes the datasets of one instance, nested ones included.

    Parameters
    ----------
    replacements
        Pseudonym, days and UIDs.
    choices
        Options of the profile.
    traces
        What identifies the patient in the original.
    """

    def __init__(self, replacements: Replacements, choices: Choices, traces: Traces) -> None:
        self._new = replacements
        self._choices = choices
        self._traces = traces

    def clean(self, original: Dataset) -> Dataset:
        """Return a new dataset; the original stays as it is."""
        found: dict[BaseTag, Element] = {}
        for tag in sorted(original.keys()):
            element = self._replaced(original, tag)
            if element is not None:
                found[tag] = element
        return Dataset(found)

    def _replaced(self, original: Dataset, tag: BaseTag) -> Element | None:
        """Return what stands for an element; None if nothing does."""
        if tag in attributes.PSEUDONYMS:
            return DataElement(tag, dictionary_VR(tag), self._new.patient)
        if tag in attributes.EMPTIED:
            return DataElement(tag, dictionary_VR(tag), None)
        if tag in attributes.DUMMIES:
            return DataElement(tag, dictionary_VR(tag), attributes.DUMMIES[tag])
        if tag in attributes.TIMES and self._choices.dates == "removed":
            return _time_removed(tag)
        if tag in attributes.DEVICE and self._choices.device == "removed":
            return DataElement(tag, dictionary_VR(tag), REMOVED)
        if tag in attributes.DESCRIPTIONS:
            return self._description(original, tag)
        if tag in attributes.TIMES or tag in attributes.DEVICE or attributes.is_kept(tag):
            return self._kept(original, tag)
        return None

    def _kept(self, original: Dataset, tag: BaseTag) -> Element | None:
        element = original.get_item(tag)
        usual = dictionary_VR(tag)
        kind = element.VR
        if kind == "UN":  # by a program that did not know the attribute
            element = original[tag]
            kind = element.VR
        if kind not in {None, usual} and kind not in _SAME.get(usual, set()):
            return None
        if usual == "SQ":
            items = original[tag].value or ()
            return DataElement(tag, "SQ", Sequence([self._item(item) for item in items]))
        if usual in attributes.TEXTS:
            return self._text(original, tag)
        if usual in _FORMS:
            return self._formed(element, usual)
        if usual in {"DA", "DT", "UI"}:
            change = {"DA": self._date, "DT": self._date_time, "UI": self._uid}[usual]
            new = [change(part) for part in _letters(element).split("\\")]
            return None if None in new else DataElement(tag, usual, new)
        is_kept = usual in attributes.BULK or (usual in attributes.NUMBERS and _has_right_number(element))
        return element if is_kept else None

    def _item(self, original: Dataset) -> Dataset:
        """Return an item of a sequence; pixels are those of the whole object."""
        found = self.clean(original)
        for tag in PIXELS & found.keys():
            del found[tag]
        return found

    def _formed(self, element: Element, kind: str) -> Element | None:
        """Return a code, number or time as it is, if all of its values have the form of their type."""
        parts = _letters(element).split("\\")
        is_right = [not part.strip(_BLANK) or _FORMS[kind].fullmatch(part) is not None for part in parts]
        if kind == "CS":
            right = [ok and not self._identifies(part) for ok, part in zip(is_right, parts, strict=True)]
            kept = [part if ok else REMOVED for ok, part in zip(right, parts, strict=True)]
            return element if all(right) else DataElement(element.tag, kind, kept)
        if element.tag in attributes.NUMBERS_OF_PEOPLE and not all(map(_SHORT_COUNTER.fullmatch, parts)):
            return DataElement(element.tag, kind, None)
        return element if all(is_right) else None

    def _text(self, original: Dataset, tag: BaseTag) -> Element:
        most = _MOST_CHARACTERS.get(dictionary_VR(tag))
        is_reduced = tag in attributes.REDUCED or (
            tag == _MEANING and text(original, "CodingSchemeDesignator") not in SCHEMES
        )
        parts = list(map(_printable, _texts(original, tag)))
        if tag == _MODEL:
            parts = [self._reduced(part, words_of_models) for part in parts]
        elif is_reduced:
            parts = [self._reduced(part, words_and_short_codes) for part in parts]
        is_wrong = self._is_no_token if tag in attributes.TOKENS else self._identifies
        kept = [REMOVED if is_wrong(part) else part[:most] for part in parts]  # a name is not cut
        if is_wrong("".join(kept)) or self._traces.are_in_text(" ".join(kept)):
            kept = [REMOVED]
        return DataElement(tag, dictionary_VR(tag), kept if len(kept) != 1 else kept[0])

    def _reduced(self, part: str, words_of: Callable[[str, Collection[str]], str]) -> str:
        words = "" if holds_date_or_number(part) else words_of(part, self._traces.names)
        return words or (REMOVED if part.strip() else "")

    def _identifies(self, part: str) -> bool:
        """Return whether a code or a text may tell of whom it is: by an identifier, a date or a long number."""
        return part.strip(_BLANK) not in TERMS and (holds_date_or_number(part) or self._traces.are_in_text(part))

    def _is_no_token(self, part: str) -> bool:
        return not _A_TOKEN.fullmatch(part) or self._traces.are_in_text(part)

    def _description(self, original: Dataset, tag: BaseTag) -> Element:
        stated = " ".join(_texts(original, tag)).strip()
        words = words_of_the_field(stated, self._traces.names)[:64].strip()
        if self._traces.are_in_text(words):
            words = ""
        if stated and not words and tag in attributes.AGENTS:
            words = "none" if stated.casefold() == "n/a" else REMOVED
        return DataElement(tag, dictionary_VR(tag), words)

    def _date(self, part: str) -> str | None:
        if not part.strip(_BLANK):
            return ""
        found = _DATE.fullmatch(part)
        try:
            moved = date(*map(int, found.groups())) - timedelta(self._new.days) if found else None
        except (ValueError, OverflowError):
            return None
        return f"{moved.year:04}{moved:%m%d}" if moved else None

    def _date_time(self, part: str) -> str | None:
        if not part.strip(_BLANK):
            return ""
        found = _DATE_TIME.fullmatch(part)
        day = self._date(found[1]) if found else None
        return f"{day}{found[2]}" if found and day else None

    def _uid(self, part: str) -> str:
        original = part.strip(_BLANK)
        return original if not original or is_registered(original) else self._new.uid(original)


def _time_removed(tag: BaseTag) -> DataElement | None:
    kind = dictionary_VR(tag)
    if tag in attributes.EMPTY_WITHOUT_DATES:
        return DataElement(tag, kind, None)
    return DataElement(tag, kind, _DUMMY_TIMES[kind]) if tag in attributes.DUMMY_WITHOUT_DATES else None


def _has_right_number(element: Element) -> bool:
    """Return whether an element of binary numbers has none, or as many as the standard says."""
    kind, value = dictionary_VR(element.tag), element.value
    if isinstance(value, bytes) and kind in _NUMBER_BYTES:
        count, rest = divmod(len(value), _NUMBER_BYTES[kind])
        if rest:
            return False
    else:
        count = len(value) if isinstance(value, list | MultiValue) else int(value is not None)
    fewest, _, most = dictionary_VM(element.tag).partition("-")
    return not count or (count >= int(fewest) and (most.endswith("n") or count <= int(most or fewest)))


def _letters(element: Element) -> str:
    """Return the value of an element whose characters are ASCII, without its padding; what is not ASCII is marked."""
    value = element.value
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").rstrip(_BLANK)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, list | MultiValue) else str(value)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _texts(original: Dataset, tag: BaseTag) -> list[str]:
    """Return the values of an element in any character set."""
    value = original[tag].value
    several = value if isinstance(value, list | MultiValue) else [value]
    return ["" if one is None else str(one).rstrip(_BLANK) for one in several]
