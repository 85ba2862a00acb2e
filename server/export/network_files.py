"""The network as ONNX and as TorchScript: without pickle, without paths of this machine, and with the same results.

Both take batches of any size and volumes whose sizes are multiples of the network's divisors. Each file is read back
and compared with PyTorch before it is passed on.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConfigError, FedvoxError
from common.plan.base import Axes3
from common.plan.plan import ModelPlan, Plan

ONNX_FILE, TORCHSCRIPT_FILE = "models/model.onnx", "models/model.ts"
TOLERANCE = 1e-4
"""Largest difference of a logit from PyTorch's, or that fraction of the largest logit if it is over 1."""
_SEED = 18


class _Checked(nn.Module):
    """The network behind a check of its input, which a trace leaves out."""

    def __init__(self, network: nn.Module, plan: ModelPlan) -> None:
        super().__init__()
        self.network = network
        self.channels = plan.in_channels
        self.x, self.y, self.z = plan.divisors
        self.expected = (
            f"image must be (batch, {plan.in_channels}, x, y, z) with x, y, z multiples of {self.x}, {self.y}, {self.z}"
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits."""
        if image.dim() != 5 or image.size(1) != self.channels:
            raise ValueError(self.expected)
        if image.size(2) % self.x != 0 or image.size(3) % self.y != 0 or image.size(4) % self.z != 0:
            raise ValueError(self.expected)
        logits: Tensor = self.network(image)
        return logits


class _Sized(nn.Module):
    """The network before a check of its output: sizes that do not fit come out larger, if they come out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits, expanded to the size that they have."""
        logits: Tensor = self.network(image)
        return logits.expand(-1, -1, *image.shape[2:])


def require_packages(kind: str, *names: str) -> None:
    """Refuse a format whose packages are not installed.

    Raises
    ------
    ConfigError
        Names them, and the extra that has them.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"--format {kind}: needs {' and '.join(missing)}; install the extra (pip install 'fedvox[export]')"
        )


def write_onnx(folder: Path, model: nn.Module, plan: Plan) -> None:
    """Write ``models/model.onnx`` and, beside it, its weights.

    Parameters
    ----------
    folder
        Where to.
    model
        In evaluation mode, on the CPU.
    plan
        The model's plan.

    Raises
    ------
    FedvoxError
        The file does not give what PyTorch gives.
    """
    import onnxruntime

    sizes = dict.fromkeys((2, 3, 4), torch.export.Dim.DYNAMIC)
    example = _example(2, _small(plan), plan)
    path = folder / ONNX_FILE
    path.parent.mkdir(exist_ok=True)
    # The exporter warns about its own operators, and about packages that it could use and does not need.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Sized(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch"), **sizes}},
        )
    if program is None:
        raise FedvoxError("the network cannot be written as ONNX; leave out this format")
    x, y, z = plan.model.divisors
    for node in program.model.graph.all_nodes():
        # Lines of source with this machine's paths.
        node.metadata_props.clear()
        # Sizes that do not fit are found here, and the error names the node.
        if node.op_type in ("Concat", "Expand"):
            node.name = f"{node.name}, where the image's sizes must be multiples of {x}, {y}, {z}"
    program.save(path, external_data=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {"image": image.numpy()})[0], dtype=np.float32)

    check_same(path, model, plan, run)


def write_torchscript(folder: Path, model: nn.Module, plan: Plan) -> None:
    """Write ``models/model.ts``; parameters and errors as in ``write_onnx``."""
    path = folder / TORCHSCRIPT_FILE
    path.parent.mkdir(exist_ok=True)
    archive = io.BytesIO()
    trace: Callable[..., Any] = torch.jit.trace  # without type hints, as are script and load
    script: Callable[..., Any] = torch.jit.script
    load: Callable[..., Any] = torch.jit.load
    with warnings.catch_warnings():
        # The network compares sizes in Python to refuse wrong ones, which a trace leaves out.
        warnings.simplefilter("ignore")
        traced = trace(model, _example(2, _small(plan), plan), check_trace=False)
        torch.jit.save(script(_Checked(traced, plan.model)).eval(), archive)
    _without_debug_files(archive, path)
    loaded = load(str(path), map_location="cpu")

    def run(image: Tensor) -> NDArray[np.float32]:
        return np.asarray(loaded(image).numpy(), dtype=np.float32)

    check_same(path, model, plan, run)


def _without_debug_files(source: io.BytesIO, target: Path) -> None:
    """Copy an archive without the files that map its code to source with this machine's paths."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))


def check_same(path: Path, model: nn.Module, plan: Plan, run: Callable[[Tensor], NDArray[np.float32]]) -> None:
    """Compare what a file gives with PyTorch, for two shapes.

    Parameters
    ----------
    path
        The file.
    model, plan
        The network, on the CPU in evaluation mode, and its plan.
    run
        Returns the file's logits for an image (batch, channels, x, y, z).

    Raises
    ------
    FedvoxError
        A logit differs by more than ``TOLERANCE``.
    """
    with torch.no_grad():
        for image in _images(plan):
            expected = model(image).numpy()
            allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(run(image) - expected).max())
            if not difference <= allowed:
                raise FedvoxError(
                    f"{path.name}: differs by {difference:.2g} from PyTorch ({allowed:.2g} is allowed); leave out this "
                    "format, or try other versions of PyTorch and ONNX"
                )


def _images(plan: Plan) -> Iterator[Tensor]:
    """Yield a patch, and a batch of three of another shape."""
    yield _example(1, plan.patch_size, plan)
    x, y, z = plan.model.divisors
    yield _example(3, (3 * x, 4 * y, 2 * z), plan)


def _small(plan: Plan) -> Axes3:
    """Return a shape to follow the network with: no axis has the size 1, of which exporters make a constant."""
    x, y, z = plan.model.divisors
    return 4 * x, 2 * y, 3 * z


def _example(batch: int, shape: Axes3, plan: Plan) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn((batch, plan.model.in_channels, *shape), generator=generator)
