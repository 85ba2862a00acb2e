"""A trained model on disk: a self-contained bundle of ``model.safetensors`` and ``model.json``.

``model.json`` holds the format version, the plan (labels, channels, preprocessing, network), the model's provenance,
and the size, SHA-256 and parameter count of the weights file. Loading checks all of this and cannot run code from the
files: weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from common.errors import BundleError
from common.formatting import counted
from common.models.bundle_file import (
    DESCRIPTION_FILE,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    BundleDescription,
    check_format,
)
from common.models.unet3d import build_model
from common.plan.describe_errors import describe_validation_error
from common.plan.plan import ModelPlan, Plan


@dataclass(frozen=True, eq=False)
class Bundle:
    """A validated model bundle.

    Attributes
    ----------
    plan
        Labels, channels, preprocessing and network.
    weights
        Parameter name -> float32 tensor on the CPU.
    provenance
        Origin of the model, as given to :func:`common.models.bundle_file.write_bundle`.
    sha256
        SHA-256 of the weights file; identifies the model in reports.
    """

    plan: Plan
    weights: dict[str, Tensor]
    provenance: dict[str, Any]
    sha256: str

    def build_model(self) -> nn.Module:
        """Return a new network with these weights, on the CPU, in evaluation mode."""
        model = build_model(self.plan.model)
        model.load_state_dict(self.weights)
        return model.eval()


def load_bundle(folder: Path) -> Bundle:
    """Read and validate a bundle.

    Raises
    ------
    BundleError
        If a file is missing, truncated or altered, the format version is unsupported, or the weights do not match the
        plan's network.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such folder; give the folder that holds {DESCRIPTION_FILE}")
    description = _parse_description(folder / DESCRIPTION_FILE)
    weights_path = folder / WEIGHTS_FILE
    # Hash and parse the same bytes, so that the file cannot change in between.
    data = _read(weights_path)
    expected = description.weights
    if len(data) != expected.bytes:
        raise BundleError(
            f"{weights_path}: has {counted(len(data), 'byte')}, {DESCRIPTION_FILE} says {expected.bytes}: truncated or "
            "from another model; copy the bundle again"
        )
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise BundleError(
            f"{weights_path}: its SHA-256 is not the one in {DESCRIPTION_FILE}: damaged, altered or from another "
            "model; copy the bundle again"
        )
    try:
        weights = load_tensors(data)
    except SafetensorError as error:
        raise BundleError(f"{weights_path}: is not a safetensors file ({error}); export the model again") from error
    problem = _weights_problem(weights, description.plan.model)
    if problem is None and _count(weights) != expected.parameters:
        problem = f"{_count(weights)} parameters, {DESCRIPTION_FILE} says {expected.parameters}"
    if problem:
        raise BundleError(f"{weights_path}: does not fit the plan in {DESCRIPTION_FILE}: {problem}")
    return Bundle(description.plan, weights, description.provenance, expected.sha256)


def _parse_description(path: Path) -> BundleDescription:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: is not complete JSON ({error}); copy the bundle again") from error
    otherwise = f'is not a Fedvox model description (no "format": "{FORMAT}")'
    check_format(content, FORMAT, FORMAT_VERSION, path, otherwise)
    try:
        return BundleDescription.model_validate(content)
    except ValidationError as error:
        raise BundleError(describe_validation_error(error, BundleDescription, str(path))) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        inside = path.parent / "model"
        hint = f"; did you mean {inside}?" if (inside / path.name).exists() else ""
        raise BundleError(
            f"{path}: is missing; a model is {WEIGHTS_FILE} and {DESCRIPTION_FILE} together{hint}"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error


def _weights_problem(weights: Mapping[str, Tensor], plan: ModelPlan) -> str | None:
    """Describe how the weights differ from the plan's network; None if they fit."""
    with torch.device("meta"):
        expected = build_model(plan).state_dict()
    for verb, names in (("lack", expected.keys() - weights.keys()), ("hold unknown", weights.keys() - expected.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            return f"the weights {verb} {shown}"
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, the network needs {tuple(expected[name].shape)}"
        if tensor.dtype != torch.float32:
            return f"{name} is stored as {tensor.dtype}, not float32"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} holds NaN or infinite values"
    return None


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
