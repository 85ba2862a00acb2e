"""The summary of a run, made from its run folder without importing torch."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import common
from common.config.federation import FederationConfig, as_json
from common.errors import DamagedFileError
from common.plan.plan import Plan
from server.privacy.forecast import privacy_summary
from server.release.personal import personal_summary
from server.release.software import installed_packages
from server.run_store.damage import SUMMARY_FILE, note_results
from server.run_store.folder import RunFolder, RunState, now


def write_summary(folder: RunFolder, config: FederationConfig, plan: Plan, status: str, reason: str | None) -> None:
    """Write ``summary.json``, unless the run has not started.

    Parameters
    ----------
    folder
        The run folder.
    config, plan
        The federation's configuration and plan.
    status
        ``finished``, ``stopped`` or ``interrupted``.
    reason
        Why the run stopped.
    """
    state = folder.load_state()
    if state is None:
        return
    about = {
        "reason": reason,
        "engine": "network",
        "device": None,
        "precision": config.training.precision,
        "parameters": _parameters(folder, state),
        "pooled": None,
    }
    save_summary(folder, state, summary_of(folder, state, config, plan, status) | about)


def write_reason(folder: RunFolder, reason: str) -> None:
    """Write a summary that says only why the run stopped, for a run whose files do not allow more."""
    folder.write_text(SUMMARY_FILE, as_json({"name": folder.path.name, "status": "stopped", "reason": reason}))


def save_summary(folder: RunFolder, state: RunState, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``; the state of a finished run then names it and the other results by their digests."""
    folder.write_text(SUMMARY_FILE, as_json(summary))
    if summary["status"] == "finished":
        note_results(folder, state)


def summary_of(folder: RunFolder, state: RunState, config: FederationConfig, plan: Plan, status: str) -> dict[str, Any]:
    """Return the part of the summary that simulations and networked runs share."""
    best = None
    if state.best_round is not None:
        best = next((line for line in folder.read_rounds() if line["model_round"] == state.best_round), None)
    return {
        "name": config.name,
        "status": status,
        "rounds_planned": config.rounds,
        "rounds_done": state.round,
        "stopped_early": state.stopped_early,
        "best_round": state.best_round,
        "best_mean_dice": state.best_mean_dice,
        "final_mean_dice": state.final_mean_dice,
        "best_dice": best["dice"] if best else None,
        "seconds": round(state.seconds, 1),
        "started": state.started,
        "finished": now(),
        "seed": config.seed,
        "versions": {
            "fedvox": common.__version__,
            "flwr": version("flwr"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        "packages": installed_packages(),
        "bytes_up": state.bytes_up,
        "bytes_down": state.bytes_down,
        "labels": {str(label): name for label, name in plan.labels.items()},
        "privacy": privacy_summary(config, plan),
        "personal": personal_summary(config, folder.read_rounds()),
    }


def _parameters(folder: RunFolder, state: RunState) -> int | None:
    try:
        return folder.layout(state.round).size
    except DamagedFileError:
        return None
