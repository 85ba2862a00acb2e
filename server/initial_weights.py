"""The model before the first round: drawn from the seed, or one that was trained before."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import torch

from common.bundle import Bundle, load_bundle
from common.config import FederationConfig, load_federation
from common.errors import ConfigError, FedvoxError
from common.models.unet3d import build_model
from common.plan import Plan
from common.protocol import Vector, WeightLayout
from server.state import RunFolder

log = logging.getLogger("fedvox.server")


def initial_weights(plan: Plan, seed: int) -> tuple[Vector, WeightLayout]:
    """The network's own initialisation, drawn from the federation's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(plan.model)
    layout = WeightLayout.of(model)
    return layout.flatten(model.state_dict()), layout


def first_weights(config: FederationConfig, plan: Plan) -> tuple[Vector, WeightLayout]:
    """The weights that a federation's first round starts from, and how they lie in a vector.

    Those of ``config.initial_model`` if there is one. Its heads, which give the classes, are kept only if it has the
    same labels; otherwise they are drawn from the seed, as all weights are without an initial model.

    Raises:
        ConfigError: the initial model is not there, has changed, or is another network than the plan's.
        BundleError: it is damaged.
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


def write_first_checkpoint(folder: RunFolder) -> None:
    """Writes the model before the first round, drawn in a process of its own, whose memory ends with it.

    Raises:
        FedvoxError: as ``first_weights``, or the process ended without saying why.
    """
    command = [sys.executable, "-m", "server.initial_weights", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FedvoxError(
            done.stderr.strip().rpartition("\n")[2] or f"drawing the first weights ended with {done.returncode}"
        )


def main(run: Path) -> None:
    """Writes the model before the first round of a run over a network."""
    folder = RunFolder.open(run)
    try:
        config = load_federation(folder.path / "federation.yaml")
        plan = Plan.model_validate_json((folder.path / "plan.json").read_bytes())
        weights, layout = first_weights(config, plan)
        folder.save_checkpoint(0, weights, layout)
    except FedvoxError as error:
        sys.exit(str(error))


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
    main(Path(sys.argv[1]))
