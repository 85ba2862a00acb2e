"""Tags that tell apart the volumes of one series."""

from __future__ import annotations

KINDS = {
    "EchoTime": "echo time",
    "InversionTime": "inversion time",
    "DiffusionBValue": "b-value",
    "ImageType": "image type",
    "KVP": "tube voltage",
    "ConvolutionKernel": "kernel",
    "TemporalPositionIdentifier": "time point",
}
"""Slices that differ in one of these belong to several volumes. Keyword -> words for people."""

NUMBERS = ("EchoTime", "InversionTime", "DiffusionBValue", "KVP")
"""Kinds that are measured, with noise."""

RUNNING = ("ImageType", "TemporalPositionIdentifier")
"""Kinds that may change along the slices of one volume, from one piece of it to the next."""

COUNTERS = {
    "AcquisitionNumber": "acquisition",
    "DiffusionGradientOrientation": "gradient direction",
    "TriggerTime": "trigger time",
    "AcquisitionTime": "acquisition time",
    "ContentTime": "content time",
}
"""May differ within one volume: looked at only where slices lie on each other. The likeliest first."""

TIMES = ("TriggerTime", "AcquisitionTime", "ContentTime")
"""Counters that several volumes may share by chance."""

MARKS = {**KINDS, **COUNTERS}
"""All of them, in the order of ``Slice.marks``."""
