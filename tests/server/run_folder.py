"""A run folder as a simulation leaves it, in miniature, for tests of what reads such folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from server.run_store.folder import RunFolder, RunState

LABELS = {1: "anterior", 2: "posterior"}
SITES = {"raw-low": (117, 29), "uint8": (37, 9), "raw-high": (23, 5)}


def site_line(number: int, index: int, rounds: int) -> dict[str, Any]:
    """What a site reports in a round: Dice rises, loss falls, later sites lag behind."""
    dice = {str(label): round(0.9 - 0.88 * 0.55 ** (number - 1) - 0.012 * index - 0.01 * label, 4) for label in LABELS}
    trains = number <= rounds
    return {
        "status": "ok",
        "reason": None,
        "examples": list(SITES.values())[index % 3][0],
        "steps": 40 if trains else 0,
        "train_loss": 0.12 + 1.3 * 0.7**number + 0.02 * index if trains else None,
        "validation_loss": 0.15 + 1.4 * 0.7**number + 0.03 * index,
        "mean_dice": sum(dice.values()) / len(dice),
        "dice": dice,
        "validation_examples": list(SITES.values())[index % 3][1],
        "seconds": 12.0 - index if trains else 2.0,
        "seconds_data": 0.2 if trains else 0.0,
        "seconds_compute": 9.5 - index if trains else 0.0,
        "seconds_evaluate": 1.8,
        "epsilon": None,
    }


def round_line(number: int, rounds: int, sites: Sequence[str] = tuple(SITES)) -> dict[str, Any]:
    """A line of rounds.jsonl; number ``rounds`` + 1 is the final evaluation."""
    parts = {name: site_line(number, index, rounds) for index, name in enumerate(sites)}
    losses = [part["train_loss"] for part in parts.values() if part["train_loss"] is not None]
    return {
        "round": number,
        "phase": "train" if number <= rounds else "evaluate",
        "model_round": number - 1,
        "seconds": sum(part["seconds"] for part in parts.values()) + 0.4,
        "bytes_up": 5_600_000 * len(parts) if number <= rounds else 0,
        "bytes_down": 5_600_000 * len(parts),
        "mean_dice": sum(part["mean_dice"] for part in parts.values()) / len(parts),
        "dice": {str(label): float(np.mean([part["dice"][str(label)] for part in parts.values()])) for label in LABELS},
        "train_loss": sum(losses) / len(losses) if losses else None,
        "sites": parts,
    }


def write_json_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_run_folder(folder: Path, rounds: int = 10, sites: Sequence[str] = tuple(SITES)) -> Path:
    """A finished run of ``rounds`` rounds with all its files but checkpoints, model and example cases."""
    folder.mkdir(parents=True)
    folder.joinpath("federation.yaml").write_text(
        f"name: hippocampus\nrounds: {rounds}\nseed: 0\ntraining:\n  learning_rate: 0.002\n", encoding="utf-8"
    )
    plan = Plan(
        channels=("MRI",),
        labels=LABELS,
        preprocessing=PreprocessingPlan(spacing=(1.0, 1.0, 1.0)),
        model=ModelPlan(classes=3),
        patch_size=(40, 56, 40),
    )
    folder.joinpath("plan.json").write_text(plan.model_dump_json(), encoding="utf-8")
    _write_partition(folder, sites)
    lines = [round_line(number, rounds, sites) for number in range(1, rounds + 2)]
    write_json_lines(folder / "rounds.jsonl", lines)
    write_json_lines(
        folder / "events.jsonl",
        [
            {"time": "2026-01-05T09:00:00+00:00", "event": "sites_ready", "sites": list(sites)},
            {"time": "2026-01-05T09:07:37+00:00", "event": "finished", "rounds": rounds, "best_round": rounds},
        ],
    )
    _write_summary(folder, rounds, lines)
    _write_validation(folder, sites)
    folder.joinpath("examples").mkdir()
    RunFolder(folder).commit(RunState(run="r", digest="d", started="now", round=rounds, finished=True))
    return folder


def write_examples(folder: Path) -> None:
    """Two good and two bad cases of different sites."""
    for index, (kind, score) in enumerate((("best", 0.93), ("best", 0.92), ("worst", 0.71), ("worst", 0.78))):
        write_example(folder, list(SITES)[index % len(SITES)], index, kind, score)


def _write_partition(folder: Path, sites: Sequence[str]) -> None:
    parts = {}
    for index, name in enumerate(sites):
        train, validation = list(SITES.values())[index % 3]
        parts[name] = {
            "train": [f"{name}_{case:03d}" for case in range(train)],
            "validation": [f"{name}_{case:03d}" for case in range(train, train + validation)],
            "shift": None,
            "differs": f"stored intensities of the group {name}",
        }
    partition = {"method": "column", "seed": 0, "sites": parts}
    folder.joinpath("partition.json").write_text(json.dumps(partition), encoding="utf-8")


def _write_summary(folder: Path, rounds: int, lines: Sequence[Mapping[str, Any]]) -> None:
    summary = {
        "name": "hippocampus",
        "status": "finished",
        "rounds_planned": rounds,
        "rounds_done": rounds,
        "best_round": rounds,
        "best_mean_dice": lines[-1]["mean_dice"],
        "final_mean_dice": lines[-1]["mean_dice"],
        "best_dice": lines[-1]["dice"],
        "seconds": 457.2,
        "started": "2026-01-05T09:00:00+00:00",
        "finished": "2026-01-05T09:07:37+00:00",
        "seed": 0,
        "engine": "inline",
        "device": "cpu",
        "precision": "bfloat16",
        "versions": {"fedvox": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0", "python": "3.11.9"},
        "parameters": 1_402_611,
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "labels": {str(label): name for label, name in LABELS.items()},
        "stopped_early": False,
        "pooled": {"mean_dice": 0.882, "dice": {"1": 0.89, "2": 0.874}, "seconds": 430.0},
    }
    folder.joinpath("summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _write_validation(folder: Path, sites: Sequence[str]) -> None:
    random = np.random.default_rng(0)
    with (folder / "validation.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["site", "case", "label", "label_name", "dice", "hd95_mm", "assd_mm", "nsd_at_1mm", "volume_error"]
        )
        for index, site in enumerate(sites):
            train, validation = list(SITES.values())[index % 3]
            for case in range(train, train + validation):
                for label, name in LABELS.items():
                    dice = float(np.clip(0.88 - 0.01 * index + random.normal(0, 0.03), 0, 1))
                    numbers = (dice, 8 * (1 - dice) + 0.4, 3 * (1 - dice) + 0.1, dice**0.5, random.normal(0, 0.06))
                    writer.writerow([site, f"{site}_{case:03d}", label, name, *(f"{value:.4f}" for value in numbers)])


def structures(shape: tuple[int, int, int], shift: Sequence[float] = (0, 0, 0), size: float = 1.0) -> NDArray[np.uint8]:
    """Two ellipsoids, one in front of the other, as a label map."""
    x, y, z = (axis - count / 2 for axis, count in zip(np.indices(shape), shape, strict=True))
    labels = np.zeros(shape, np.uint8)
    for label, (middle, radii) in enumerate((((0, 8, 2), (7, 8, 6)), ((0, -8, -1), (5, 11, 5))), start=1):
        parts = zip((x, y, z), middle, shift, radii, strict=True)
        labels[sum(((axis - m - s) / (r * size)) ** 2 for axis, m, s, r in parts) <= 1] = label
    return labels


def write_example(folder: Path, site: str, index: int, kind: str, mean_dice: float) -> Path:
    """A validation case; the worse its Dice, the further the prediction lies off."""
    random = np.random.default_rng(index)
    shape = (35, 51, 35)
    truth = structures(shape)
    prediction = structures(shape, shift=(0, 12 * (1 - mean_dice), -6 * (1 - mean_dice)), size=0.75 + 0.25 * mean_dice)
    image = (400 + 250 * (truth > 0) + random.normal(0, 40, shape)).astype(np.float32)
    meta = {"site": site, "case": f"{site}_{index:03d}", "mean_dice": mean_dice, "kind": kind}
    path = folder / "examples" / f"{kind}_{index}.npz"
    np.savez_compressed(
        path, image=image, truth=truth, prediction=prediction, spacing=np.ones(3), meta=np.array(json.dumps(meta))
    )
    return path
