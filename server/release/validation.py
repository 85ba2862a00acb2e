"""Validation of a released model: scores, validation table and example cases."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.formatting import csv_text
from common.imaging.cache.case_cache import CachedCase
from common.imaging.sliding_window import WindowOptions, sliding_window
from common.metrics import case_metrics
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.protocol.codec import WeightLayout
from common.system.files import write_atomically
from server.run_store.folder import RunFolder

EXAMPLES_OF_A_KIND = 3
METRICS = ("dice", "hd95_mm", "assd_mm", "nsd_at_1mm", "volume_error")


@dataclass(frozen=True)
class Scored:
    """One validation case with its prediction; arrays as in ``CachedCase``."""

    site: str
    case: CachedCase
    prediction: NDArray[np.uint8]
    metrics: Mapping[int, Mapping[str, float]]

    @property
    def mean_dice(self) -> float:
        """Mean Dice over labels; NaN if no label has one."""
        values = [scores["dice"] for scores in self.metrics.values() if not math.isnan(scores["dice"])]
        return sum(values) / len(values) if values else math.nan


def load_model(folder: RunFolder, plan: Plan, round_number: int) -> torch.nn.Module:
    """Load the network with the weights of a checkpoint, on the CPU, in evaluation mode."""
    model = build_model(plan.model)
    layout = WeightLayout.of(model)
    layout.load(model, folder.load_checkpoint(round_number, layout))
    return model.eval()


def score_cases(
    model: torch.nn.Module,
    plan: Plan,
    cases: Mapping[str, Sequence[CachedCase]],
    device: torch.device,
    precision: str,
) -> Iterator[Scored]:
    """Segment every site's cases on the grid of the preprocessed scan, and score them."""
    model = model.to(device)
    options = WindowOptions(device=device, precision=precision)
    for site, members in cases.items():
        for case in members:
            scores = sliding_window(model, np.asarray(case.image), plan.patch_size, options)
            prediction = np.asarray(scores.argmax(axis=0), dtype=np.uint8)
            metrics = case_metrics(prediction, np.asarray(case.label), list(plan.labels), case.spacing)
            yield Scored(site, case, prediction, metrics)


def write_validation_table(folder: RunFolder, plan: Plan, scored: Sequence[Scored]) -> None:
    """Write ``validation.csv``: one row per case and label; undefined values stay empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "case", "label", "label_name", *METRICS])
    for item in scored:
        for label, name in plan.labels.items():
            values = [item.metrics[label].get(metric, math.nan) for metric in METRICS]
            shown = ["" if not math.isfinite(value) else f"{value:.5f}" for value in values]
            writer.writerow([csv_text(item.site), csv_text(item.case.name), label, csv_text(name), *shown])
    folder.write_text("validation.csv", text.getvalue())


def write_examples(folder: RunFolder, scored: Sequence[Scored]) -> None:
    """Save the best and the worst cases with truth and prediction, for the report's pictures."""
    ranked = sorted(
        (item for item in scored if not math.isnan(item.mean_dice)), key=lambda item: (item.mean_dice, item.case.name)
    )
    count = min(EXAMPLES_OF_A_KIND, len(ranked) // 2)
    examples = folder.path / "examples"
    examples.mkdir(exist_ok=True)
    for old in examples.glob("*.npz"):
        old.unlink()
    for kind, items in (("worst", ranked[:count]), ("best", ranked[len(ranked) - count :][::-1])):
        for rank, item in enumerate(items, start=1):
            meta = {"site": item.site, "case": item.case.name, "mean_dice": item.mean_dice, "kind": kind}
            data = io.BytesIO()
            np.savez_compressed(
                data,
                image=np.asarray(item.case.image[0], dtype=np.float32),
                truth=np.asarray(item.case.label, dtype=np.uint8),
                prediction=item.prediction,
                spacing=np.asarray(item.case.spacing, dtype=np.float64),
                meta=np.array(json.dumps(meta)),
            )
            write_atomically(examples / f"{kind}_{rank}.npz", data.getvalue())


def mean_dice_by_label(scored: Sequence[Scored], labels: Mapping[int, str]) -> dict[str, float | None]:
    """Return, for each label, the mean over sites of each site's mean over its cases."""
    result: dict[str, float | None] = {}
    for label in labels:
        by_site: dict[str, list[float]] = {}
        for item in scored:
            value = item.metrics[label]["dice"]
            if not math.isnan(value):
                by_site.setdefault(item.site, []).append(value)
        means = [sum(values) / len(values) for values in by_site.values()]
        result[str(label)] = sum(means) / len(means) if means else None
    return result


def mean_of(values: Mapping[str, float | None]) -> float | None:
    """Return the mean of the known values, or None if there are none."""
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known) if known else None
