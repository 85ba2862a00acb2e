"""UIDs of results: the same scan, model and kind of result always give the same ones."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from client.inference.applied_model import AppliedModel
from client.inference.dicom.source import Source

_NAMESPACE = UUID("7a0c3f5e-5d0e-4c57-9c0e-3f1a3e0b6c1d")


def result_uid(source: Source, model: AppliedModel, *kind: str) -> str:
    """Return the UID of a result.

    Archives throw away an instance whose UID they have, so whatever may change a result changes its UID: other slices,
    weights, plan, options or version, and a patient or study that was corrected.

    Parameters
    ----------
    source
        The scan.
    model
        The model.
    kind
        What is named, such as ``series`` and ``binary``.
    """
    frames = [(frame.instance, frame.number) for frame in source.frames]
    copied = [source.values, source.deidentification, source.character_set]
    content = json.dumps([kind, source.series.study, source.series.uid, frames, copied, model.key], sort_keys=True)
    return f"2.25.{uuid5(_NAMESPACE, content).int}"


def structure_uid(source: Source, model: AppliedModel, label: int) -> str:
    """Return the UID by which segment and report name one structure of a scan."""
    return result_uid(source, model, "structure", str(label))


def frame_of_reference(source: Source) -> str:
    """Return the UID of the source's frame of reference, or one made from its series if it has none."""
    series = source.series
    return source.frame_of_reference or f"2.25.{uuid5(_NAMESPACE, f'frame of {series.study} {series.uid}').int}"
