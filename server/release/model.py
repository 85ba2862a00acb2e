"""Release of a run's model as a bundle, without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import common
from common.config.federation import FederationConfig
from common.models.bundle_file import write_bundle
from common.plan.plan import Plan
from server.release.personal import NORMS_KEPT
from server.run_store.folder import RunFolder, RunState


def save_released_model(
    folder: RunFolder, config: FederationConfig, plan: Plan, state: RunState, round_number: int, sites: Sequence[str]
) -> None:
    """Write the checkpoint of ``round_number`` as the run's bundle, without loading it into memory."""
    layout = folder.layout(round_number)
    weights = layout.split(folder.map_checkpoint(round_number, layout))
    provenance = {
        "federation": config.name,
        "description": config.description,
        "modality": config.modality,
        "run": state.run,
        "digest": state.digest,
        "round": round_number,
        "rounds": state.round,
        "mean_validation_dice": state.best_mean_dice if round_number == state.best_round else state.final_mean_dice,
        "sites": len(sites),
        "strategy": config.strategy.name,
        "personal": None if config.personal is None else config.personal.method,
        "started": state.started,
        "fedvox": common.__version__,
        "torch": version("torch"),
    }
    if config.personal is not None and config.personal.method == "norms":
        provenance["note"] = NORMS_KEPT
    write_bundle(folder.path / "model", weights, plan, provenance)
