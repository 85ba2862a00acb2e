"""De-identifying one file: the entry point of this room."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
)

from client.deidentify import attributes
from client.deidentify.choices import Choices, InstanceRefusedError, Reason
from client.deidentify.cleaning import Cleaner, Replacements
from client.deidentify.identities import Identities
from client.deidentify.kinds import is_registered, require_taken
from client.deidentify.pixels import PIXELS, leave_pixels_alone
from client.deidentify.selfcheck import require_clean
from client.deidentify.traces import Traces
from common.errors import DataError
from common.imaging.io.dicom.header import read_header, refused_as_damaged
from common.imaging.io.dicom.values import tag_of, text
from common.system.files import write_atomically

_METHOD = "Fedvox: PS3.15 Basic Profile by a positive list of attributes"
_PROFILE = ("113100", "Basic Application Confidentiality Profile")
_CLEANED = ("113105", "Clean Descriptors Option")
_SHIFTED = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_DEVICE = ("113109", "Retain Device Identity Option")
_UNKNOWN_LENGTH = 0xFFFFFFFF
_ABOUT = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Deidentified:
    """A de-identified instance, not written yet.

    Attributes
    ----------
    content
        The file.
    patient
        The pseudonym, which is its PatientID and PatientName.
    study, series, instance, kind
        Its UIDs, and that of its SOP class.
    """

    content: bytes
    patient: str
    study: str
    series: str
    instance: str
    kind: str

    def write(self, path: Path) -> None:
        """Write the file under a temporary name, and rename it; the caller flushes it to disk.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        write_atomically(path, self.content, durable=False)


class Deidentifier:
    """De-identifies the files of one hospital.

    Parameters
    ----------
    identities
        The hospital's secret, and its record of whom pseudonyms stand for.
    choices
        Options of the profile.
    """

    def __init__(self, identities: Identities, choices: Choices) -> None:
        self._identities = identities
        self._choices = choices

    def deidentify(self, source: Path) -> Deidentified:
        """De-identify a file. Whom its pseudonyms stand for is recorded on disk before this returns.

        Parameters
        ----------
        source
            A DICOM file; it stays as it is.

        Raises
        ------
        InstanceRefusedError
            The file is damaged, of a kind that is not taken, may show names in its pixels, or would still hold an
            identifier.
        DamagedFileError
            The record of identities is damaged.
        OutputError
            The record cannot be written.
        """
        with _refused(source):
            if read_header(source) is None:
                raise InstanceRefusedError(Reason.KIND, "is no image, segmentation or structure set")
            original = pydicom.dcmread(source, force=True)
            require_taken(original, self._choices)
            _require_whole(original)
            about = {keyword: text(original, keyword) for keyword in _ABOUT}
            traces = Traces(original)
        patient = self._identities.patient(about["PatientID"], about["StudyInstanceUID"])
        new = Replacements(patient, self._identities.days(patient), self._identities.uid)
        with _refused(source):
            result = Cleaner(new, self._choices, traces).clean(original)
            self._complete(result, patient)
            syntax = _syntax_of(original)
            leave_pixels_alone(result, syntax)
            content = _encoded(result, syntax)
            require_clean(content, patient, traces)
        self._record(about, new)
        return Deidentified(
            content=content,
            patient=patient,
            study=result.StudyInstanceUID,
            series=result.SeriesInstanceUID,
            instance=result.SOPInstanceUID,
            kind=result.SOPClassUID,
        )

    def _complete(self, result: Dataset, patient: str) -> None:
        """Set what every de-identified object must have, whatever the original had."""
        for tag in attributes.PSEUDONYMS | attributes.ALWAYS_THERE:
            result[tag] = DataElement(tag, dictionary_VR(tag), patient if tag in attributes.PSEUDONYMS else None)
        is_shifted, is_device_kept = self._choices.dates == "shifted", self._choices.device == "kept"
        codes = [_PROFILE, _CLEANED, *([_SHIFTED] if is_shifted else []), *([_DEVICE] if is_device_kept else [])]
        _set(
            result,
            PatientIdentityRemoved="YES",
            DeidentificationMethod=_METHOD,
            DeidentificationMethodCodeSequence=Sequence([_code(*code) for code in codes]),
            LongitudinalTemporalInformationModified="MODIFIED" if is_shifted else "REMOVED",
        )

    def _record(self, about: dict[str, str], new: Replacements) -> None:
        study, series = new.uid(about["StudyInstanceUID"]), new.uid(about["SeriesInstanceUID"])
        patient = {"kind": "patient", "pseudonym": new.patient, "days": new.days, "original": about["PatientID"]}
        self._identities.record(
            [
                {**patient, "issuer": about["IssuerOfPatientID"]},
                {
                    "kind": "study",
                    "pseudonym": study,
                    "patient": new.patient,
                    "original": about["StudyInstanceUID"],
                    "accession_number": about["AccessionNumber"],
                },
                {"kind": "series", "pseudonym": series, "study": study, "original": about["SeriesInstanceUID"]},
            ]
        )


@contextmanager
def _refused(source: Path) -> Iterator[None]:
    """Refuse an instance for whatever a library makes of a damaged or hostile file; values are in no message."""
    refusal = None
    try:
        with refused_as_damaged(source):
            try:
                yield
            except InstanceRefusedError as error:
                refusal = error
    except DataError as error:
        refusal = InstanceRefusedError(Reason.DAMAGED, error.problem)
    if refusal is not None:
        raise refusal


def _require_whole(original: Dataset) -> None:
    """Require elements of the length that they announce, pixels, and the UIDs of an instance."""
    for element in map(original.get_item, list(original.keys())):
        if isinstance(element, RawDataElement) and len(element.value or b"") < element.length != _UNKNOWN_LENGTH:
            raise InstanceRefusedError(Reason.DAMAGED, "is cut off")
    if text(original, "SOPClassUID") != RTStructureSetStorage and PIXELS.isdisjoint(original.keys()):
        raise InstanceRefusedError(Reason.DAMAGED, "has no pixels")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not text(original, keyword) or is_registered(text(original, keyword)):
            raise InstanceRefusedError(Reason.DAMAGED, f"has no {keyword} of its own")


def _encoded(result: Dataset, syntax: UID) -> bytes:
    """Return a file in the transfer syntax of the original, so that its pixels stay as they are."""
    result.file_meta = FileMetaDataset()
    _set(
        result.file_meta,
        MediaStorageSOPClassUID=result.SOPClassUID,
        MediaStorageSOPInstanceUID=result.SOPInstanceUID,
        TransferSyntaxUID=syntax,
    )
    if any(not str(part).isascii() for part in _kept_texts(result)):
        _set(result, SpecificCharacterSet="ISO_IR 192")
    buffer = io.BytesIO()
    result.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _syntax_of(original: Dataset) -> UID:
    if syntax := text(original.file_meta, "TransferSyntaxUID"):
        if not is_registered(syntax):
            raise InstanceRefusedError(Reason.DAMAGED, "has a private transfer syntax")
        return UID(syntax)
    is_implicit, is_little = original.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _kept_texts(dataset: Dataset) -> Iterator[object]:
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)
        if element.VR == "SQ":
            for item in dataset[tag].value:
                yield from _kept_texts(item)
        elif element.VR in attributes.TEXTS:
            yield element.value


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    _set(code, CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)
    return code


def _set(dataset: Dataset, **values: object) -> None:
    for keyword, value in values.items():
        dataset[tag_of(keyword)] = DataElement(tag_of(keyword), dictionary_VR(tag_of(keyword)), value)
