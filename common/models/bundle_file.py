"""The files of a model bundle (``common.models.bundle``), without torch: writes them, and checks their format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.errors import BundleError, OutputError
from common.formatting import visible
from common.plan.base import Frozen, Whole
from common.plan.plan import Plan
from common.system.files import write_atomically
from common.weights.digest import Digest
from common.weights.safetensors_file import float32_header

WEIGHTS_FILE = "model.safetensors"
FEWEST = 5
"""Nothing that goes with a model tells the number or scores of fewer scans: they would be of single patients."""
DESCRIPTION_FILE = "model.json"
FORMAT = "fedvox-bundle"
FORMAT_VERSION = 1
AT_A_TIME = 2**20


class WeightsDescription(Frozen):
    """Size, SHA-256 and parameter count of the weights file."""

    sha256: Digest
    bytes: Annotated[Whole, Field(ge=1, le=2**50)]
    parameters: Annotated[Whole, Field(ge=1, le=2**48)]


class BundleDescription(Frozen):
    """Content of ``model.json``."""

    format: Literal["fedvox-bundle"]
    format_version: Annotated[Whole, Field(ge=1, le=1000)]
    weights: WeightsDescription
    plan: Plan
    provenance: dict[str, Any]


def check_format(content: object, name: str, version: int, path: Path, otherwise: str) -> None:
    """Check which format the JSON of a model's file states.

    Parameters
    ----------
    content
        What was parsed.
    name, version
        The format that is expected.
    path
        The file, for the error.
    otherwise
        What the file is if it does not state this format, and what to do.

    Raises
    ------
    BundleError
        It states no format, another one, or another version.
    """
    if not isinstance(content, dict) or content.get("format") != name:
        raise BundleError(f"{path}: {otherwise}")
    found = content.get("format_version")
    if type(found) is not int or found != version:
        raise BundleError(
            f"{path}: format version {visible(str(found))[:40]}, this Fedvox reads version {version}; install the "
            "Fedvox release that the model was exported with, or a later one"
        )


def write_bundle(
    folder: Path, weights: Mapping[str, NDArray[np.float32]], plan: Plan, provenance: Mapping[str, Any]
) -> None:
    """Write a bundle, replacing an existing one.

    Each file is written atomically. A crash between the two leaves weights that do not match the SHA-256 in the
    description; ``common.models.bundle.load_bundle`` rejects them.

    Parameters
    ----------
    folder
        Created if missing.
    weights
        Weights of the plan's network, which the caller must ensure. They may be memory-mapped and are not copied.
    plan
        The plan that the model was trained with.
    provenance
        Origin of the model as JSON values.

    Raises
    ------
    BundleError
        If a weight is NaN or infinite.
    OutputError
        If the folder cannot be written.
    """
    ordered = {name: weights[name] for name in sorted(weights)}
    header = float32_header({name: values.shape for name, values in ordered.items()})
    digest = hashlib.sha256(header)
    for name, values in ordered.items():
        for part in _parts(values):
            if not np.isfinite(part).all():
                raise BundleError(f"{folder}: these weights cannot be saved: {name} holds NaN or infinite values")
            digest.update(part.data)
    count = sum(values.size for values in ordered.values())
    description = BundleDescription(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        weights=WeightsDescription(sha256=digest.hexdigest(), bytes=len(header) + 4 * count, parameters=count),
        plan=plan,
        provenance=dict(provenance),
    )
    text = json.dumps(description.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror or error}; choose another folder") from error
    write_atomically(folder / WEIGHTS_FILE, header, *(part.data for each in ordered.values() for part in _parts(each)))
    write_atomically(folder / DESCRIPTION_FILE, text)


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    flat = np.ascontiguousarray(values, "<f4").reshape(-1)
    for start in range(0, flat.size, AT_A_TIME):
        yield flat[start : start + AT_A_TIME]
