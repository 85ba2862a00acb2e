"""How a file stores its pixels: read from its header, and refused where it promises what it cannot hold."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import BinaryIO, Literal

from pydicom.dataset import Dataset
from pydicom.uid import UID

from common.imaging.io.dicom.slices import PixelForm, RefusedError, shown
from common.imaging.io.dicom.values import text, whole

FORM_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit"),
)
"""Keywords of the elements that this needs."""

IMAGE_KINDS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",  # enhanced
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",  # enhanced, converted from classic ones
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "PET",
    "1.2.840.10008.5.1.4.1.1.130": "PET",
}
"""SOP classes that are read; CT and PET have physical units."""

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
LABEL_KINDS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", STRUCTURE_SET})
"""SOP classes of labels: segmentations, label map segmentations, and structure sets."""

_WITH_UNITS = ("CT", "PET")
_IMPLICIT, _EXPLICIT, _DEFLATED, BIG_ENDIAN = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
)
_UNCOMPRESSED = (_IMPLICIT, _EXPLICIT, BIG_ENDIAN)
_JPEG = "1.2.840.10008.1.2.4."
_COMPRESSED = ("1.2.840.10008.1.2.5", *(f"{_JPEG}{number}" for number in (50, 57, 70, 80, 81, 90, 91)))
SYNTAXES = (*_UNCOMPRESSED, _DEFLATED, *_COMPRESSED)
"""Transfer syntaxes that are read."""

_LARGE_BYTES = 2**26
_MOST_COMPRESSION = 1000
"""Large images that are compressed more than this are a promise that no file keeps."""

_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_PIXEL_DATA_BIG_ENDIAN = b"\x7f\xe0\x00\x10"
_EMPTY_SHELL = "has no pixel data: an empty shell of an image"
_LONG_FORMS = (b"OW", b"OB", b"UN")


def pixel_form(dataset: Dataset, file: BinaryIO, kind: str) -> PixelForm:
    """Return how an image's pixels are stored.

    Parameters
    ----------
    dataset
        The header, with ``FORM_TAGS``.
    file
        The file, positioned where pydicom stopped before pixel data.
    kind
        SOP class UID.

    Raises
    ------
    RefusedError
        It is no image that is read here, or its pixels are missing, truncated or in a form that is not read.
    """
    if kind not in IMAGE_KINDS:
        raise RefusedError(f"holds {_kind_name(kind)} objects, which are not read as images", left_out=True)
    form = stored_form(dataset, file)
    if form.bits_allocated == 1:
        raise RefusedError("stores 1 of 1 bits for each pixel, which is not read as an image")
    photometric = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RefusedError(f"is no grey image ({shown(photometric)})")
    return replace(form, is_inverted=photometric == "MONOCHROME1" and IMAGE_KINDS[kind] not in _WITH_UNITS)


def stored_form(dataset: Dataset, file: BinaryIO) -> PixelForm:
    """Return how pixels with one sample each are stored, whatever they mean.

    Parameters
    ----------
    dataset
        The header, with ``FORM_TAGS``.
    file
        The file, positioned where pydicom stopped before pixel data.

    Raises
    ------
    RefusedError
        They are missing, truncated or in a form that is not read.
    """
    rows, columns = whole(dataset, "Rows") or 0, whole(dataset, "Columns") or 0
    if rows < 1 or columns < 1:
        raise RefusedError("has no rows or columns: an empty shell of an image")
    if (samples := whole(dataset, "SamplesPerPixel") or 1) != 1:
        raise RefusedError(f"is in colour ({samples} samples per pixel)")
    allocated, stored, high, signed = _bits(dataset)
    syntax = _syntax(dataset)
    frames = whole(dataset, "NumberOfFrames")
    form = PixelForm(
        rows=rows,
        columns=columns,
        frames=1 if frames is None else frames,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high,
        is_signed=signed,
        is_inverted=False,
        padding=_padding(dataset, allocated, signed),
        syntax=syntax,
        offset=None,
    )
    promised = -(-form.rows * form.columns * form.frames * form.bits_allocated // 8)
    if syntax in _UNCOMPRESSED:
        return replace(form, offset=_offset(file, syntax, promised, allocated))
    if syntax in _COMPRESSED and file.read(4) != _PIXEL_DATA:
        raise RefusedError(_EMPTY_SHELL)
    if promised > _LARGE_BYTES and promised > _MOST_COMPRESSION * os.fstat(file.fileno()).st_size:
        size = f"{columns:,} x {rows:,} pixels" + (f" in {form.frames:,} frames" if form.frames > 1 else "")
        raise RefusedError(f"promises {size}, which its file cannot hold")
    return form


def _bits(dataset: Dataset) -> tuple[int, int, int, bool]:
    allocated = whole(dataset, "BitsAllocated") or 16
    stored = whole(dataset, "BitsStored") or allocated
    found = whole(dataset, "HighBit")
    high = stored - 1 if found is None else found
    if allocated not in (1, 8, 16, 32) or not 1 <= stored <= high + 1 <= allocated:
        raise RefusedError(f"stores {stored} of {allocated} bits up to number {high}, which is not read")
    return allocated, stored, high, whole(dataset, "PixelRepresentation") == 1


def _syntax(dataset: Dataset) -> str:
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if not syntax:
        return _IMPLICIT if dataset.original_encoding[0] else _EXPLICIT
    if syntax in SYNTAXES:
        return syntax
    name = UID(syntax).name
    what = "an unknown or private transfer syntax" if name == syntax else f"the transfer syntax {name}"
    raise RefusedError(f"is stored in {what} ({shown(syntax)}), which is not read: export it uncompressed")


def _padding(dataset: Dataset, allocated: int, signed: bool) -> tuple[int, int] | None:
    value = whole(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = whole(dataset, "PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    # Often written, or read, as if the pixels had a sign, or had none. The element has 16 bits at least.
    bits = max(16, allocated)
    ends = [end - 2**bits if signed and end >= 2 ** (bits - 1) else end for end in ends]
    ends = [end + 2**bits if not signed and end < 0 else end for end in ends]
    return min(ends), max(ends)


def _offset(file: BinaryIO, syntax: str, promised: int, allocated: int) -> int:
    """Return where uncompressed pixels begin; ``file`` is at the header of their element."""
    start = file.read(12)
    order: Literal["big", "little"] = "big" if syntax == BIG_ENDIAN else "little"
    if start[:4] != (_PIXEL_DATA_BIG_ENDIAN if order == "big" else _PIXEL_DATA):
        raise RefusedError(_EMPTY_SHELL)
    is_long = start[4:6] in _LONG_FORMS
    if order == "big" and allocated <= 8 and start[4:6] == b"OW":
        raise RefusedError(
            f"stores pixels of {allocated} bits in big-endian words, which is not read: export it as little endian"
        )
    length = int.from_bytes(start[8:12] if is_long else start[4:8], order)
    if length == 0xFFFFFFFF:
        raise RefusedError("has compressed pixel data under an uncompressed transfer syntax: export it again")
    offset = file.tell() - (0 if is_long else 4)
    held = min(length, os.fstat(file.fileno()).st_size - offset)
    if held < promised:
        raise RefusedError(f"has truncated pixel data: {max(held, 0):,} of {promised:,} bytes. Copy it again")
    return offset


def _kind_name(kind: str) -> str:
    name = UID(kind).name
    return "private" if name == kind else name.removesuffix(" Storage")
