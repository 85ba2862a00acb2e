"""Elements of raw bytes, of which nothing stays but the pixels and tables that a file says it has."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, RLELossless

from client.deidentify.choices import InstanceRefusedError, Reason
from client.deidentify.jpeg import bare_jpeg
from client.deidentify.jpeg_2000 import bare_jpeg_2000
from client.deidentify.rle import bare_rle
from common.imaging.io.dicom.values import numbers, tag_of, text, whole

_PIXEL_DATA, _FLOATS, _DOUBLES = map(tag_of, ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
PIXELS = frozenset({_PIXEL_DATA, _FLOATS, _DOUBLES})
_BITS = {_FLOATS: 32, _DOUBLES: 64}
_HALF_COLOUR = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
_UNKNOWN_LENGTH = 0xFFFFFFFF
_JPEG = "1.2.840.10008.1.2.4."
_JPEG_FAMILY = frozenset(f"{_JPEG}{number}" for number in (50, 51, 57, 70, 80, 81))
_JPEG_2000 = frozenset(f"{_JPEG}{number}" for number in (90, 91, 201, 202, 203))
_COLOURS = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
_TABLES = {"LUTData": "LUTDescriptor", **{f"{colour}Data": f"{colour}Descriptor" for colour in _COLOURS}}


def leave_pixels_alone(result: Dataset, syntax: UID) -> None:
    """Remove from the elements of raw bytes whatever is no pixel and no entry of a table.

    Uncompressed pixels are cut behind the last one. Of compressed ones, frames are encapsulated anew: as many as the
    file says it has, each without comments and without what is behind its end. Pixels stay as they are.

    Parameters
    ----------
    result
        The dataset, which is changed.
    syntax
        Its transfer syntax.

    Raises
    ------
    InstanceRefusedError
        There are fewer pixels than the file says, several elements of pixels, or a stream that cannot be parsed.
    """
    _require_tables(result)
    found = PIXELS & result.keys()
    if len(found) > 1:
        raise InstanceRefusedError(Reason.DAMAGED, "has pixels twice")
    for tag in found:
        element = result.get_item(tag)
        value = encapsulate(_bare_frames(result, element, syntax)) if syntax.is_encapsulated else _cut(result, element)
        length = _UNKNOWN_LENGTH if syntax.is_encapsulated else len(value)
        result[tag] = _with_value(element, value, length)


def _cut(result: Dataset, element: DataElement | RawDataElement) -> bytes:
    value = element.value or b""
    rows, columns, bits, samples, frames = _size(result)
    if text(result, "PhotometricInterpretation") in _HALF_COLOUR:
        samples = samples * 2 // 3
    count = (rows * columns * samples * _BITS.get(element.tag, bits) * frames + 7) // 8
    if getattr(element, "length", 0) == _UNKNOWN_LENGTH:
        raise InstanceRefusedError(Reason.DAMAGED, "has compressed pixels under an uncompressed transfer syntax")
    if not 0 < count <= len(value):
        raise InstanceRefusedError(Reason.DAMAGED, "has fewer pixels than it says")
    return bytes(value[:count] + b"\0" * (count % 2))


def _bare_frames(result: Dataset, element: DataElement | RawDataElement, syntax: str) -> list[bytes]:
    rows, columns, bits, samples, count = _size(result)
    if syntax in _JPEG_FAMILY:
        bare: Callable[[bytes], bytes] = bare_jpeg
    elif syntax in _JPEG_2000:
        bare = bare_jpeg_2000
    elif syntax == RLELossless:
        bare = partial(bare_rle, planes=samples * -(-bits // 8), pixels=rows * columns)
    else:
        name = UID(syntax).name
        raise InstanceRefusedError(Reason.KIND, f"is stored as {name}, in which text beside the pixels is not found")
    try:
        frames = [bare(one) for one in islice(generate_frames(element.value or b"", number_of_frames=count), count)]
    except (ValueError, IndexError, struct.error):
        raise InstanceRefusedError(Reason.DAMAGED, "has compressed pixels that cannot be parsed") from None
    if len(frames) < count:
        raise InstanceRefusedError(Reason.DAMAGED, "has fewer pixels than it says")
    return frames


def _size(result: Dataset) -> tuple[int, int, int, int, int]:
    """Return rows, columns, bits, samples and frames."""
    rows, columns, bits = (whole(result, keyword) or 0 for keyword in ("Rows", "Columns", "BitsAllocated"))
    if rows < 1 or columns < 1 or bits < 1:
        raise InstanceRefusedError(Reason.DAMAGED, "has fewer pixels than it says")
    return rows, columns, bits, whole(result, "SamplesPerPixel") or 1, whole(result, "NumberOfFrames") or 1


def _with_value(element: DataElement | RawDataElement, value: bytes, length: int) -> DataElement | RawDataElement:
    if isinstance(element, RawDataElement):
        return element._replace(value=value, length=length)
    return DataElement(element.tag, element.VR, value, is_undefined_length=length == _UNKNOWN_LENGTH)


def _require_tables(dataset: Dataset) -> None:
    """Require that look-up tables, at any depth, have as many bytes as their descriptors say."""
    for tag in list(dataset.keys()):
        if dataset.get_item(tag).VR == "SQ":
            for item in dataset[tag].value or ():
                _require_tables(item)
    for keyword, descriptor in _TABLES.items():
        if tag_of(keyword) in dataset:
            count, _, bits = numbers(dataset, descriptor, 3) or (-1, 0, 0)
            entries = int(count) or 2**16
            sizes = {2 * entries} | ({entries + entries % 2} if bits == 8 else set())
            if _bytes_of(dataset.get_item(keyword).value) not in sizes:
                raise InstanceRefusedError(Reason.DAMAGED, f"has a table of another length than it says in {keyword}")


def _bytes_of(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return 2 * (len(value) if hasattr(value, "__len__") else 1)
