"""The elements of a header, as their bytes.

Nearly all files are alike: a preamble, then elements with explicit types and lengths, little-endian, up to the pixel
data. These are skimmed here, several times as fast as pydicom reads them; an archive has millions. Whatever is
different in any respect is read by pydicom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import BinaryIO

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag

from common.imaging.io.dicom.values import ANY_LETTERS, is_plain

_START_BYTES = 2**15
_PREFIX_END = 132
_ELEMENT = Struct("<HH2sH")
_LENGTH = Struct("<I")
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"),
        *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
_PIXEL_DATA, _SYNTAX, _FIRST_OF_IMAGE = 0x7FE00010, 0x00020010, 0x00080000
_OTHER_ORDERS = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")


def read_elements(file: BinaryIO, wanted: Sequence[BaseTag]) -> Dataset:
    """Read the elements of a file up to its pixel data, at which the file is positioned afterwards.

    Parameters
    ----------
    file
        The file, at its beginning.
    wanted
        Tags of the elements to return.
    """
    if (found := _skim(file.read(_START_BYTES), {int(tag): tag for tag in wanted})) is not None:
        dataset, position = found
        file.seek(position)
        return dataset
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(wanted))


def _skim(start: bytes, wanted: Mapping[int, BaseTag]) -> tuple[Dataset, int] | None:
    """Return the elements and the position of the pixel data; None if anything is out of the ordinary.

    Tags are compared as numbers: comparing pydicom's takes as long as all else.
    """
    if start[_PREFIX_END - 4 : _PREFIX_END] != b"DICM":
        return None
    found: dict[BaseTag, DataElement | RawDataElement] = {}
    meta: dict[BaseTag, DataElement | RawDataElement] = {}
    position, last, size = _PREFIX_END, 0, len(start)
    while position + 12 <= size:
        group, element, kind, length = _ELEMENT.unpack_from(start, position)
        tag = group << 16 | element
        begin = position + 8
        if kind in _LONG:
            (length,) = _LENGTH.unpack_from(start, begin)
            begin += 4
        elif kind not in _SHORT:
            return None
        if tag == _PIXEL_DATA:
            dataset = Dataset(found)
            dataset.file_meta = FileMetaDataset(meta)
            return dataset, position
        end = begin + length
        if end > size or tag <= last:
            return None
        is_meta = tag < _FIRST_OF_IMAGE
        if is_meta or tag in wanted:
            name, value = kind.decode(), start[begin:end]
            other_order = tag == _SYNTAX and value.rstrip(b"\0 ") in _OTHER_ORDERS
            if other_order or (name in ANY_LETTERS and not is_plain(value)):
                return None
            known = BaseTag(tag) if is_meta else wanted[tag]
            (meta if is_meta else found)[known] = RawDataElement(known, name, length, value, begin, False, True)
        position, last = end, tag
    return None
