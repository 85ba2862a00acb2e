"""Runs that are finished, in miniature, for tests of what is exported from them: one of a network, with its kits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from common.audit import AuditLog
from common.config.federation import FederationConfig
from common.models.unet3d import build_model
from common.protocol.codec import WeightLayout
from common.system.state_file import digest_of_file
from server.coordinator.round_audit import audited
from server.coordinator.startup import make_run_folder, take_over_run
from server.progress.events import RoundDone
from server.provisioning.kits import provision
from server.release.model import save_released_model
from server.release.summary import write_summary
from server.run_store.folder import AUDIT_FILE, RunFolder

SITES = {"north": (12, 8), "south": (7, 5), "west": (3, 1)}
"""Numbers of training and validation scans; the last site has too few for publication."""
DICE = {"north": 0.9, "south": 0.6, "west": 0.12345}


def federation(**values: object) -> FederationConfig:
    """Three sites, two labels, one round; scans are resampled to voxels that are wider along z."""
    content = {
        "name": "tiny",
        "rounds": 1,
        "seed": 3,
        "strategy": {"min_sites": 1},
        "labels": {1: "ball", 2: "shell | <b>"},
        "channels": ["t1"],
        "modality": "MR",
        "preprocessing": {"spacing": [1.0, 1.2, 1.5]},
        "model": {"channels": [8, 16], "blocks": 1, "decoder_blocks": 1, "groups": 4, "patch_size": [16, 16, 16]},
        "network": {"address": "127.0.0.1", "sites": list(SITES)},
    }
    return FederationConfig.model_validate(content | values)


def networked_run(folder: Path, config: FederationConfig | None = None) -> Path:
    """Make ``kits`` and the finished run ``run`` in a folder, without training; return the run."""
    config = config or federation()
    provision(config, folder / "kits")
    run = folder / "run"
    make_run_folder(run)
    finished = take_over_run(run, folder / "kits/server", config)
    _finish(finished, config)
    return run


def without_audit_log(run: Path, path: Path) -> Path:
    """A copy of a run as a simulation leaves it: nobody kept a log."""
    shutil.copytree(run, path)
    for file in path.glob(f"{AUDIT_FILE}*"):
        file.unlink()
    return path


def _finish(folder: RunFolder, config: FederationConfig) -> None:
    plan = folder.plan()
    torch.manual_seed(1)
    model = build_model(plan.model)
    layout = WeightLayout.of(model)
    weights = layout.flatten(model.state_dict())
    folder.save_checkpoint(0, weights, layout)
    folder.begin(config.digest(), "network", ("plan.json",))
    state = folder.load_state()
    assert state is not None
    audit = AuditLog(folder.path / AUDIT_FILE)
    emit = audited(lambda event: None, audit, folder)
    for line in (_line(1, 0), _line(2, 1)):
        state.finished = line["phase"] == "evaluate"
        state.round = 1
        folder.save_checkpoint(1, weights, layout)
        folder.append_round(line)
        folder.commit(state)
        emit(RoundDone(line))
    state.best_round, state.best_mean_dice = 1, 0.75
    folder.commit(state)
    save_released_model(folder, config, plan, state, 1, list(SITES))
    digest = digest_of_file(folder.path / "model/model.safetensors")
    audit.append("model_released", round=1, sites=list(SITES), sha256=digest)
    audit.append("server_stopped", outcome="finished")
    write_summary(folder, config, plan, "finished", None)


def _line(number: int, model_round: int) -> dict[str, Any]:
    sites = {
        name: {"status": "ok", "reason": None, "examples": patients[0], "validation_examples": patients[1]}
        | {"train_loss": 0.5, "mean_dice": DICE[name], "dice": {"1": DICE[name], "2": DICE[name]}, "epsilon": None}
        | {"personal_mean_dice": None, "sha256": "ab" * 32}
        for name, patients in SITES.items()
    }
    phase = "train" if number == 1 else "evaluate"
    about: dict[str, Any] = {
        "round": number,
        "phase": phase,
        "model_round": model_round,
        "bytes_up": 1,
        "bytes_down": 1,
    }
    about |= {"mean_dice": 0.75, "dice": {"1": 0.75, "2": 0.75}, "personal_mean_dice": None}
    return about | {"train_loss": 0.5, "sites": sites}
