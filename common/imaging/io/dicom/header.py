"""The header of a DICOM file: which series it belongs to, and its slices."""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, MediaStorageDirectoryStorage

from common.errors import DataError
from common.imaging.io.dicom.elements import read_elements
from common.imaging.io.dicom.frames import SLICE_TAGS, slices_of
from common.imaging.io.dicom.pixel_form import FORM_TAGS, pixel_form
from common.imaging.io.dicom.slices import RefusedError, Slice
from common.imaging.io.dicom.values import stored, tag_of, text

# What pydicom says about odd values quotes them; refusals here are in our words.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_NAMES = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"),
)
_TAGS = [tag_of(keyword) for keyword in ("SOPClassUID", *_NAMES, *FORM_TAGS, *SLICE_TAGS)]
_MAGIC_OFFSET = 128
_HEAD_BYTES = 2**16
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_DEFLATE_RATIO = 1032  # deflate cannot compress better
_MOST_INFLATED_BYTES = 2**30
"""A deflated file that is larger when inflated is refused: no slice is, but a file can be made to fill the memory."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The header of one file.

    Attributes
    ----------
    path
        The file.
    study, series, uid, kind
        UIDs of study, series, instance and SOP class, as stored.
    number, description, modality, image_type
        As text; may be empty.
    patient
        PatientID in Unicode's composed form, NFC; may be empty.
    issuer
        IssuerOfPatientID; may be empty.
    person
        Name and birth date, equal for instances that have the same.
    slices
        Slices of an image that can be read.
    problem
        Why it cannot be read; None if it can.
    """

    path: Path
    study: str
    series: str
    uid: str
    kind: str
    number: str
    description: str
    modality: str
    image_type: str
    patient: str = field(repr=False)
    issuer: str = field(repr=False)
    person: bytes = field(repr=False)
    slices: tuple[Slice, ...]
    problem: RefusedError | None


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does, with or without preamble; nothing else than files is opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(_MAGIC_OFFSET + 4)
    except OSError:
        return False
    # Without a preamble, the first element is one of the first groups, with a small number.
    return start[_MAGIC_OFFSET:] == b"DICM" or (start[:2] in _FIRST_GROUPS and start[3:4] == b"\0")


def read_header(path: Path) -> Instance | None:
    """Read the header of a DICOM file.

    Returns
    -------
    Instance | None
        None for a DICOMDIR, and for a file without a series.

    Raises
    ------
    DataError
        The file cannot be read or is damaged.
    """
    with refused_as_damaged(path), path.open("rb") as file:
        _require_moderate(path, os.fstat(file.fileno()).st_size)
        dataset = read_elements(file, _TAGS)
        kind = text(dataset, "SOPClassUID")
        if text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage or not (
            kind and text(dataset, "SeriesInstanceUID")
        ):
            return None
        slices: tuple[Slice, ...] = ()
        problem = None
        try:
            slices = slices_of(dataset, pixel_form(dataset, file, kind), path)
        except RefusedError as error:
            problem = error
        return Instance(
            path=path,
            study=text(dataset, "StudyInstanceUID"),
            series=text(dataset, "SeriesInstanceUID"),
            uid=text(dataset, "SOPInstanceUID"),
            kind=kind,
            number=text(dataset, "SeriesNumber"),
            description=text(dataset, "SeriesDescription"),
            modality=text(dataset, "Modality"),
            image_type=text(dataset, "ImageType"),
            patient=unicodedata.normalize("NFC", text(dataset, "PatientID").strip()),
            issuer=text(dataset, "IssuerOfPatientID").strip(),
            person=_person(dataset),
            slices=slices,
            problem=problem,
        )


def _person(dataset: Dataset) -> bytes:
    """Return name and birth date as stored, without other spellings of the name, blanks and the case of letters."""
    name = stored(dataset, "PatientName").split(b"=")[0].strip(b" \0^").upper()
    return b"=".join((name, stored(dataset, "PatientBirthDate").strip(b" \0")))


@contextmanager
def refused_as_damaged(path: Path, part: str = "header") -> Iterator[None]:
    """Convert whatever a library makes of a damaged or hostile file to an error that names the file.

    Raises
    ------
    DataError
        Anything went wrong.
    """
    try:
        yield
    except DataError:
        raise
    except RefusedError as error:
        raise DataError(path, error.reason) from None
    except MemoryError:
        raise DataError(path, "does not fit into memory") from None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or type(error).__name__})") from None
    except Exception as error:  # a file from anywhere may break any line of a parser
        raise DataError(
            path, f"is damaged: its {part} cannot be read ({type(error).__name__}). Copy it again"
        ) from None


def _require_moderate(path: Path, size: int) -> None:
    """Refuse a deflated file that inflates to far more than any image; others hold no more than their bytes."""
    if size * _DEFLATE_RATIO <= _MOST_INFLATED_BYTES:
        return
    with path.open("rb") as file:
        if pydicom.filereader.read_preamble(file, force=True) is None:
            file.seek(0)
            if DeflatedExplicitVRLittleEndian.encode() in file.read(_HEAD_BYTES):
                raise DataError(path, "is deflated and has no preamble: export it again")
            return
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        file.seek(_MAGIC_OFFSET + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = 0
        while piece := (inflater.unconsumed_tail or file.read(2**16)):
            inflated += len(inflater.decompress(piece, 2**20))
            if inflated > _MOST_INFLATED_BYTES:
                raise DataError(path, f"inflates to more than {_MOST_INFLATED_BYTES:,} bytes: no image is as large")
