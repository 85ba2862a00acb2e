"""From the prediction for a series to files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset

from client.inference.applied_model import AppliedModel, Prediction
from client.inference.dicom.measurements import measure
from client.inference.dicom.report import build_report
from client.inference.dicom.segmentation import build_segmentation
from client.inference.dicom.source import Source
from client.inference.results import CaseFiles, SegmentationKind
from common.imaging.geometry import reorient_from_ras
from common.system.files import write_atomically


def write_dicom(
    source: Source, prediction: Prediction, model: AppliedModel, kind: SegmentationKind, files: CaseFiles
) -> None:
    """Write a DICOM-SEG and, if there is a file for it, a structured report.

    Parameters
    ----------
    source
        What was segmented, from :func:`client.inference.dicom.source.read_source`.
    prediction
        What was found; with probabilities for ``fractional``. The report describes the label map.
    model
        What found it.
    kind
        Kind of the segmentation.
    files
        Each of them appears only once it is complete.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    if files.segmentation is None:
        return
    label = reorient_from_ras(prediction.label, source.grid)
    with _quiet():
        if kind == "fractional" and prediction.probabilities is not None:
            probabilities = reorient_from_ras(prediction.probabilities[1:], source.grid)
            segmentation = build_segmentation(source, probabilities, model, kind)
        else:
            segmentation = build_segmentation(source, label, model, kind)
        _write(files.segmentation, segmentation)
        if files.report is not None:
            sizes = measure(label, source.grid, sorted(model.plan.labels))
            _write(files.report, build_report(source, segmentation, sizes, model, kind))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, which quote what they are about, such as names of patients."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write(path: Path, content: Dataset) -> None:
    with BytesIO() as buffer:
        content.save_as(buffer, enforce_file_format=True)
        write_atomically(path, buffer.getbuffer())
