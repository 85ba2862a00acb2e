"""One validation scan with its truth and what the current global model makes of it, as files for the viewer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.consent.disclosure import Request
from client.consent.site_config import SiteConfig
from client.inference.predict import PredictOptions, Predictor
from client.state_folder import StateFolder
from client.web.pictures import size_of, slice_of, write_png
from common.errors import DamagedFileError, DataError
from common.imaging.datasets.case import Case
from common.imaging.io.nifti import write_image, write_label
from common.metrics import dice
from common.models.bundle import Bundle
from common.models.unet3d import build_model
from common.weights.digest import is_sha256
from common.weights.encoding import vector_bytes, vector_of
from common.weights.layout import WeightLayout
from common.weights.store import FileStore, MissingWeightsError

IMAGE, TRUTH, PREDICTION, SHEET = "image.nii.gz", "truth.nii.gz", "prediction.nii.gz", "sheet.png"
SLICES = 6


def segment_case(
    asked: Request,
    site: SiteConfig,
    case: Case,
    folder: Path,
    options: tuple[Path, str],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write scan, truth and prediction, and a picture of some slices, and return what is to be said of them.

    Parameters
    ----------
    folder
        For the files.
    options
        The site's state folder, and the device.
    progress
        Called with windows done and windows in all.

    Raises
    ------
    DataError, DamagedFileError
        The scan, or the model, cannot be used.
    """
    state, device = options
    model = current_model(state)
    if model is None:
        raise DataError(
            StateFolder(state).global_model, "this site has received no model yet; wait for the first round"
        )
    bundle = read_model(asked, model)
    # On a GPU it would take memory from training.
    applied = PredictOptions(device="cpu" if device == "auto" else device, terms=site.data_terms)
    predictor = Predictor(bundle, applied)
    volume, truth = predictor.load(case)
    if truth is None:
        raise DataError(case.images[0], "has no label map")
    prediction = predictor.predict(volume, folder, progress)
    image = volume.array[0]
    write_image(folder / IMAGE, image, volume.source, np.dtype(np.float32))
    write_label(folder / TRUTH, truth, volume.source)
    write_label(folder / PREDICTION, prediction, volume.source)
    shown = sheet_of(image, truth, prediction)
    write_png(folder / SHEET, shown[0])
    wide, high = size_of(volume.grid)
    return {
        "model": bundle.sha256,
        "labels": {str(value): name for value, name in bundle.plan.labels.items()},
        "received": datetime.fromtimestamp(model.stat().st_mtime, UTC).isoformat(),
        "dice": {name: _dice(prediction == value, truth == value) for value, name in bundle.plan.labels.items()},
        "slices": shown[1],
        "size": [2 * wide, len(shown[1]) * high],
    }


def _dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """Return the Dice of a label; None if neither has it, which says nothing about the model."""
    return dice(prediction, truth) if prediction.any() or truth.any() else None


def current_model(state: Path) -> Path | None:
    """Return the file of the last global model that this site has worked with; None before the first."""
    folder = StateFolder(state).global_model
    found = [file for file in folder.glob("*") if is_sha256(file.name)] if folder.is_dir() else []
    return max(found, key=lambda file: file.stat().st_ctime_ns, default=None)


def read_model(asked: Request, file: Path) -> Bundle:
    """Return a global model as it came from the server.

    Raises
    ------
    DamagedFileError
        The file is not what its name says, or no model of the kit's plan.
    """
    remedy = "wait for the next round, which brings another"
    with torch.device("meta"):
        layout = WeightLayout.of(build_model(asked.plan.model))
    encoding = asked.federation.transport.download
    one = vector_bytes(layout.size, encoding)
    try:
        content = FileStore(file.parent).verified(file.name)
    except MissingWeightsError as error:
        raise DamagedFileError(file, str(error), remedy) from None
    if not content.size or content.size % one:
        raise DamagedFileError(file, "is no model of this kit's plan", remedy)
    named = layout.split(vector_of(content[:one], layout.size, encoding))
    weights = {name: torch.from_numpy(np.array(values)) for name, values in named.items()}
    about: Mapping[str, Any] = {"federation": asked.federation.name, "modality": asked.federation.modality}
    return Bundle(asked.plan, weights, dict(about), file.name)


def sheet_of(
    image: NDArray[np.float32], truth: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return slices through what is labelled, truth on the left and prediction on the right, and their numbers."""
    labelled = np.flatnonzero(((truth > 0) | (prediction > 0)).any(axis=(0, 1)))
    first, last = (labelled[0], labelled[-1]) if labelled.size else (0, image.shape[2] - 1)
    numbers = sorted({int(at) for at in np.linspace(first, last, SLICES)})
    rows = [np.concatenate([slice_of(image, label, at) for label in (truth, prediction)], axis=1) for at in numbers]
    return np.concatenate(rows), numbers
