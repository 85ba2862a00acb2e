"""A run as trackers store it: parameters by name, and metrics by name and step."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.config.yaml_file import parse_yaml
from common.plan.plan import Plan
from server.run_store.folder import FEDERATION_FILE, RunFolder
from server.run_store.record import as_number
from server.tracking.run_reader import CommittedRound

SCORES = ("mean_dice", "personal_mean_dice", "validation_loss")
"""What a round measures of the model that it began with."""
TRAINING = (
    *("train_loss", "local_dice", "seconds", "seconds_data", "seconds_compute", "seconds_evaluate"),
    *("bytes_up", "bytes_down", "epsilon", "length", "scale", "cosine"),
)
PLANNED = ("channels", "labels", "preprocessing", "model", "patch_size", "mirror_axes", "batch_size", "privacy")
LONGEST_NAME, LONGEST_VALUE = 100, 500
"""Most characters of a part of a name, and of a parameter's value: what all versions of MLflow take."""
_UNUSUAL = re.compile(r"[^A-Za-z0-9_. -]")


@dataclass(frozen=True)
class Metric:
    """A number of a round; ``time`` in seconds since 1970."""

    name: str
    value: float
    step: int
    time: float


def parameters_of(folder: RunFolder) -> dict[str, str]:
    """Return the federation file's values and the plan's, by dotted key; null is left out.

    Raises
    ------
    FedvoxError
        One of the two is missing or damaged.
    """
    federation = parse_yaml((folder.path / FEDERATION_FILE).read_text(encoding="utf-8"), FEDERATION_FILE)
    plan = folder.plan().model_dump(mode="json", include=set(PLANNED))
    found = dict(_flat(federation, "")) | dict(_flat(plan, "plan"))
    return {safe_name(key): _short(value) for key, value in found.items()}


def metrics_of(committed: CommittedRound, plan: Plan) -> list[Metric]:
    """Return a round's metrics, of the federation and of each site.

    Scores belong to the model that the round began with, and have its round as step; all else has the round itself.
    """
    line, time = committed.line, committed.time
    step, model = int(line["round"]), int(line["model_round"])
    sites: Mapping[str, Mapping[str, Any]] = line["sites"]
    counted = [float(part["status"] == "ok") for part in sites.values()]
    found = [*_of(line, "", step, model, time, plan), Metric("sites_counted", sum(counted), step, time)]
    for (name, part), counts in zip(sites.items(), counted, strict=True):
        prefix = f"site.{safe_name(name)}/"
        found += [*_of(part, prefix, step, model, time, plan), Metric(f"{prefix}counted", counts, step, time)]
    return found


def safe_name(text: str) -> str:
    """Return a name that MLflow and TensorBoard take; one that had to be changed ends with eight digits of its hash."""
    name = _UNUSUAL.sub("_", text)[:LONGEST_NAME]
    if name == text and name.strip(". ") == name and name:
        return name
    return f"{name.strip('. ')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _of(part: Mapping[str, Any], prefix: str, step: int, model: int, time: float, plan: Plan) -> Iterator[Metric]:
    for names, at in ((SCORES, model), (TRAINING, step)):
        for name in names:
            value = as_number(part.get(name))
            if value is not None:
                yield Metric(prefix + name, value, at, time)
    for label, score in (part.get("dice") or {}).items():
        value = as_number(score)
        if value is not None:
            yield Metric(f"{prefix}dice.{safe_name(plan.labels.get(int(label), label))}", value, model, time)


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif value is not None:
        yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
