"""The last look at what was made: as its bytes, read again, before anybody can see them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

from client.deidentify import attributes
from client.deidentify.choices import InstanceRefusedError, Reason
from client.deidentify.kinds import is_registered
from client.deidentify.pixels import PIXELS
from client.deidentify.traces import Traces
from client.deidentify.vocabulary import TERMS
from common.imaging.io.dicom.values import tag_of

_OURS = frozenset(
    map(
        tag_of,
        (
            *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
            *("LongitudinalTemporalInformationModified", "SpecificCharacterSet", "ImplementationVersionName"),
        ),
    )
)
"""Words of ours, which may happen to be somebody's name."""
_MOVED = frozenset({"DA", "DT", "TM"})
_ASCII = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_BINARY_NUMBERS = attributes.NUMBERS - _ASCII
_PREAMBLE = 128
_MADE_UID = "2.25."


def require_clean(content: bytes, patient: str, traces: Traces) -> None:
    """Require that the attributes of a de-identified file hold no identifier of the original.

    Compressed pixels are searched for long identifiers alone, and pixels that are not compressed for none.

    Parameters
    ----------
    content
        The file.
    patient
        The pseudonym.
    traces
        What identifies the patient in the original.

    Raises
    ------
    InstanceRefusedError
        It does, or it holds what should not be there at all. The text names the attribute and not its value.
    """
    found = pydicom.dcmread(io.BytesIO(content))
    is_compressed = found.file_meta.TransferSyntaxUID.is_encapsulated
    if content[:_PREAMBLE].strip(b"\0"):
        raise InstanceRefusedError(Reason.IDENTIFIERS, "would still hold a preamble")
    for dataset in (found.file_meta, found):
        for tag in _OURS & dataset.keys():
            del dataset[tag]
        for tag, element in _elements(dataset):
            if not _is_clean(tag, element, patient, traces, is_compressed):
                name = keyword_for_tag(tag) or "an element"
                raise InstanceRefusedError(
                    Reason.IDENTIFIERS, f"would still hold an identifier of the patient in {name} {tag}"
                )


def _elements(dataset: Dataset) -> Iterator[tuple[BaseTag, DataElement | RawDataElement]]:
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag).value  # before pydicom has converted it
        element = dataset[tag]
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _elements(item)
        else:
            if element.VR in _ASCII and isinstance(raw, bytes) and not raw.isascii():
                raise InstanceRefusedError(Reason.IDENTIFIERS, f"would still hold text that is no ASCII in {tag}")
            yield tag, element
            if element.VR in _BINARY_NUMBERS and isinstance(raw, bytes):
                yield tag, DataElement(tag, "OB", raw)


def _is_clean(
    tag: BaseTag, element: DataElement | RawDataElement, patient: str, traces: Traces, is_compressed: bool
) -> bool:
    if tag.is_private:
        return False
    value = element.value
    if value is None or element.VR in _MOVED:  # dates of other days; times are kept
        return True
    if tag in attributes.PSEUDONYMS:
        return str(value) == patient
    parts = [str(one) for one in value] if isinstance(value, list | MultiValue) else [str(value)]
    if element.VR == "UI":
        return all(_is_of_nobody(one) and one not in traces.uids for one in parts)
    if isinstance(value, bytes):
        return (tag in PIXELS and not is_compressed) or not traces.are_in_bytes(value)
    if element.VR in attributes.NUMBERS:
        return not traces.are_in_numbers("\\".join(parts))
    rest = [part for part in parts if element.VR != "CS" or part not in TERMS]
    return not traces.are_in_text("\\".join(rest))


def _is_of_nobody(uid: str) -> bool:
    return not uid or uid.startswith(_MADE_UID) or uid == PYDICOM_IMPLEMENTATION_UID or is_registered(uid)
