"""The initial model: drawn from the seed, or pretrained."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from common.config.federation import FederationConfig, load_federation
from common.errors import ConfigError, FedvoxError
from common.models.bundle import Bundle, load_bundle
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.protocol.codec import Vector, WeightLayout
from server.run_store.folder import RunFolder

log = logging.getLogger("fedvox.server")


def initial_weights(plan: Plan, seed: int) -> tuple[Vector, WeightLayout]:
    """Return the network's default initialisation, drawn from the federation's seed."""
    model = _draw_model(plan, seed)
    layout = WeightLayout.of(model)
    return layout.flatten(model.state_dict()), layout


def write_initial_weights(folder: RunFolder, plan: Plan, seed: int) -> None:
    """Write ``initial_weights`` as checkpoint 0, with file-backed memory so that large models fit."""
    scratch = folder.path / "checkpoints" / ".drawn.part"
    try:
        with _FileBacked(scratch):
            state = _draw_model(plan, seed).state_dict()
        parts = (tensor.reshape(-1).numpy() for tensor in state.values())
        for _ in folder.write_checkpoint(0, parts, weight_layout(plan)):
            pass
    finally:
        scratch.unlink(missing_ok=True)


class _FileBacked(TorchFunctionMode):
    """Allocates new tensors in a memory-mapped file, which must outlive their use."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._end = 0
        path.unlink(missing_ok=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        if func is not torch.empty:
            return func(*args, **(kwargs or {}))
        shape = tuple(args[0]) if isinstance(args[0], Sequence) else args
        start, self._end = self._end, self._end + 4 * math.prod(shape)
        with self._path.open("ab") as file:
            file.truncate(self._end)
        return torch.from_numpy(np.memmap(self._path, np.float32, "r+", start, shape))


def _draw_model(plan: Plan, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(plan.model)


def first_weights(config: FederationConfig, plan: Plan) -> tuple[Vector, WeightLayout]:
    """Return the weights that a federation's first round starts from, and their layout.

    They come from ``config.initial_model`` if it is set. Its heads, which predict the classes, are kept only if its
    labels are the same; otherwise they are drawn from the seed. Without an initial model all weights are.

    Raises
    ------
    ConfigError
        The initial model is missing, has changed, or is a different network from the plan's.
    BundleError
        The initial model is damaged.
    """
    drawn, layout = initial_weights(plan, config.seed)
    if config.initial_model is None:
        if config.initial_model_sha256 is not None:
            raise ConfigError(
                "initial_model: is missing, but initial_model_sha256 is set; set initial_model too, or remove the hash"
            )
        return drawn, layout
    bundle = load_bundle(Path(config.initial_model))
    if bundle.sha256 != config.initial_model_sha256:
        raise ConfigError(
            f"initial_model: {config.initial_model} has changed since the federation file was read: its SHA-256 is "
            f"{bundle.sha256}, not {config.initial_model_sha256}"
        )
    _check_same_network(config.initial_model, bundle, plan)
    weights = dict(bundle.weights)
    if bundle.plan.labels != plan.labels:
        log.info("the initial model has other labels: its heads are drawn from the seed")
        fresh = build_model(plan.model)
        layout.load(fresh, drawn)
        weights |= {name: tensor for name, tensor in fresh.state_dict().items() if name.startswith("heads.")}
    return layout.flatten(weights), layout


def draw(run: Path) -> None:
    """Write the initial model or, if the run has begun, check that its last model fits the plan's network.

    Raises
    ------
    FedvoxError
        See ``first_weights``; or the last model is missing, damaged or of another network.
    """
    folder = RunFolder.open(run)
    config = load_federation(folder.path / "federation.yaml")
    plan = folder.plan()
    state = folder.load_state()
    if state is not None:
        folder.map_checkpoint(state.round, weight_layout(plan))
    elif config.initial_model is None and config.initial_model_sha256 is None:
        write_initial_weights(folder, plan, config.seed)
    else:
        folder.save_checkpoint(0, *first_weights(config, plan))


def weight_layout(plan: Plan) -> WeightLayout:
    """Return the layout of the weights of the plan's network."""
    with torch.device("meta"):
        return WeightLayout.of(build_model(plan.model))


def _check_same_network(folder: str, bundle: Bundle, plan: Plan) -> None:
    """Refuse differences other than the number of classes, which affects only the heads."""
    theirs, ours = bundle.plan.model.model_dump(), plan.model.model_dump()
    for key in (key for key in ours if key != "classes" and theirs[key] != ours[key]):
        raise ConfigError(
            f"initial_model: {folder} is a different network: its model.{key} is {_format(theirs[key])}, the "
            f"federation's is {_format(ours[key])}; copy its model section, or choose another initial model"
        )


def _format(value: object) -> str:
    return str(value).replace("(", "[").replace(")", "]")


if __name__ == "__main__":
    try:
        draw(Path(sys.argv[1]))
    except FedvoxError as error:
        sys.exit(str(error))
