"""Decoding one frame, in whichever process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

DECODERS: Mapping[str, str] = {
    RLELossless: "pydicom",
    JPEGBaseline8Bit: "gdcm",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
}
"""Who decodes what. GDCM, which would do most of it, aborts on damaged streams, so it does what only it can."""


def decode_frame(frame: bytes, syntax: str, options: Mapping[str, int]) -> NDArray[Any]:
    """Decode one frame to stored values (rows, columns).

    Parameters
    ----------
    frame
        The compressed frame.
    syntax
        Transfer syntax UID.
    options
        ``rows``, ``columns``, ``bits_allocated``, ``bits_stored`` and ``pixel_representation``.

    Raises
    ------
    Exception
        Whatever a decoder makes of a damaged frame.
    """
    all_options: Any = {
        **options,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(syntax).as_array(
        encapsulate([frame]),
        index=0,
        raw=True,
        decoding_plugin=DECODERS[syntax],
        **all_options,
    )
    return np.asarray(values)
