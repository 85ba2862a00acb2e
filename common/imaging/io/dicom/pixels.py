"""Pixels of slices: decoded, freed from bits that are not theirs, and scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian

from common.errors import DataError
from common.imaging.io.dicom.decoding.decoder import FrameDecoder, frame_decoder
from common.imaging.io.dicom.header import refused_as_damaged
from common.imaging.io.dicom.pixel_form import BIG_ENDIAN
from common.imaging.io.dicom.slices import PixelForm, Slice

_EXACT_BITS = 16
"""Values with at most so many bits, and whole numbers added to them, are exact in float32."""
_COMPRESSED = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")


def stored_frames(slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    """Read the stored values (rows, columns) of slices one after another, in native byte order.

    Raises
    ------
    DataError
        A file cannot be read, or its pixels cannot be decoded.
    """
    with frame_decoder() as decoder:
        for path, of_file in groupby(slices, key=lambda one: one.path):
            wanted = list(of_file)
            form = wanted[0].form
            frames = [one.frame for one in wanted]
            if form.offset is None:
                found = _decoded(path, form, frames, decoder)
            else:
                found = _plain(path, form, form.offset, frames)
            for values in found:
                yield _own_bits(values, form)


def scale(values: NDArray[Any], one: Slice, out: NDArray[np.float32]) -> bool:
    """Write a slice's values, scaled, to ``out`` (rows, columns); padding becomes NaN.

    Returns
    -------
    bool
        Whether there is any padding.
    """
    form = one.form
    slope, intercept = one.slope if one.slope is not None else 1.0, one.intercept or 0.0
    padding = None if form.padding is None else (values >= form.padding[0]) & (values <= form.padding[1])
    if form.is_inverted:
        # The brightest value becomes the darkest.
        values = ~values if form.is_signed else np.asarray(2**form.bits_stored - 1 - values.astype(np.int64))
    exact = form.bits_stored <= _EXACT_BITS and slope == 1 and intercept.is_integer()
    if exact and abs(intercept) < 2**_EXACT_BITS:
        np.add(values, np.float32(intercept), out=out, casting="unsafe")
    else:
        # Some values may exceed float32 and become infinite, which is reported with the file later.
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = values * np.float64(slope) + intercept
    if padding is None or not padding.any():
        return False
    out[padding] = np.nan
    return True


def _plain(path: Path, form: PixelForm, offset: int, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
    try:
        with path.open("rb") as file:
            for frame in frames:
                file.seek(offset + frame * form.frame_bytes)
                yield _as_frame(file.read(form.frame_bytes), form, path)
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror or error})") from error


def _decoded(path: Path, form: PixelForm, frames: Sequence[int], decoder: FrameDecoder) -> Iterator[NDArray[Any]]:
    with refused_as_damaged(path, "pixel data"):
        if form.syntax == DeflatedExplicitVRLittleEndian:
            data = pydicom.dcmread(path, specific_tags=["PixelData"]).PixelData
            for frame in frames:
                yield _as_frame(data[frame * form.frame_bytes : (frame + 1) * form.frame_bytes], form, path)
            return
        held = pydicom.dcmread(path, specific_tags=[*_COMPRESSED])
        tables = held.get("ExtendedOffsetTable"), held.get("ExtendedOffsetTableLengths")
        offsets = tables if all(tables) else None
        for frame in frames:
            part = get_frame(held.PixelData, frame, number_of_frames=form.frames, extended_offsets=offsets)
            yield decoder.decode(part, form)


def _as_frame(data: bytes, form: PixelForm, path: Path) -> NDArray[Any]:
    if len(data) < form.frame_bytes:
        raise DataError(path, "has truncated pixel data. Copy it again")
    kind = f"{'i' if form.is_signed else 'u'}{form.bits_allocated // 8}"
    values = np.frombuffer(data, dtype=(">" if form.syntax == BIG_ENDIAN else "<") + kind)
    return values.astype(kind, copy=False).reshape(form.rows, form.columns)


def _own_bits(values: NDArray[Any], form: PixelForm) -> NDArray[Any]:
    """Remove what other programs left in the bits above and below a pixel's own, and extend its sign."""
    above = form.bits_allocated - 1 - form.high_bit
    below = form.high_bit + 1 - form.bits_stored
    if above == below == 0:
        return values
    wide = values.astype(f"{'i' if form.is_signed else 'u'}{form.bits_allocated // 8}", copy=False)
    return np.asarray((wide << above) >> (above + below))
