"""The model before the first round: drawn from the seed, or one that was trained before."""

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
    """Return the network's own initialisation, drawn from the federation's seed."""
    model = _drawn(plan, seed)
    layout = WeightLayout.of(model)
    return layout.flatten(model.state_dict()), layout


def write_initial_weights(folder: RunFolder, plan: Plan, seed: int) -> None:
    """Write ``initial_weights`` as the model before the first round; they lie in files and never in memory."""
    scratch = folder.path / "checkpoints" / ".drawn.part"
    try:
        with _InFile(scratch):
            state = _drawn(plan, seed).state_dict()
        parts = (tensor.reshape(-1).numpy() for tensor in state.values())
        for _ in folder.write_checkpoint(0, parts, weight_layout(plan)):
            pass
    finally:
        scratch.unlink(missing_ok=True)


class _InFile(TorchFunctionMode):
    """Within it, new tensors get their memory from a file, which may be removed when they are not needed any more."""

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


def _drawn(plan: Plan, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(plan.model)


def first_weights(config: FederationConfig, plan: Plan) -> tuple[Vector, WeightLayout]:
    """Return the weights that a federation's first round starts from, and how they lie in a vector.

    Those of ``config.initial_model`` if there is one. Its heads, which give the classes, are kept only if it has the
    same labels; otherwise they are drawn from the seed, as all weights are without an initial model.

    Raises
    ------
    ConfigError
        The initial model is not there, has changed, or is another network than the plan's.
    BundleError
        It is damaged.
    """
    drawn, layout = initial_weights(plan, config.seed)
    if config.initial_model is None:
        if config.initial_model_sha256 is not None:
            raise ConfigError("initial_model: is missing, and initial_model_sha256 says that there is one")
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
        log.info("the initial model has other labels: its heads are drawn anew")
        fresh = build_model(plan.model)
        layout.load(fresh, drawn)
        weights |= {name: tensor for name, tensor in fresh.state_dict().items() if name.startswith("heads.")}
    return layout.flatten(weights), layout


def draw(run: Path) -> None:
    """Write the model before the first round; if the run has begun, check that its last one is of the plan's network.

    Raises
    ------
    FedvoxError
        As ``first_weights``; or the last model is missing, damaged or of another network.
    """
    folder = RunFolder.open(run)
    config = load_federation(folder.path / "federation.yaml")
    plan = Plan.model_validate_json((folder.path / "plan.json").read_bytes())
    state = folder.load_state()
    if state is not None:
        folder.map_checkpoint(state.round, weight_layout(plan))
    elif config.initial_model is None and config.initial_model_sha256 is None:
        write_initial_weights(folder, plan, config.seed)
    else:
        folder.save_checkpoint(0, *first_weights(config, plan))


def weight_layout(plan: Plan) -> WeightLayout:
    """How the weights of the plan's network lie in a vector."""
    with torch.device("meta"):
        return WeightLayout.of(build_model(plan.model))


def _check_same_network(folder: str, bundle: Bundle, plan: Plan) -> None:
    """All but the number of classes must be equal: it decides the shape of the heads alone."""
    theirs, ours = bundle.plan.model.model_dump(), plan.model.model_dump()
    for key in (key for key in ours if key != "classes" and theirs[key] != ours[key]):
        raise ConfigError(
            f"initial_model: {folder} is another network: its model.{key} is {_plain(theirs[key])}, the federation's "
            f"is {_plain(ours[key])}; set the model section to that of the initial model, or take another one"
        )


def _plain(value: object) -> str:
    return str(value).replace("(", "[").replace(")", "]")


if __name__ == "__main__":
    try:
        draw(Path(sys.argv[1]))
    except FedvoxError as error:
        sys.exit(str(error))
