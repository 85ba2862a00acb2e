"""The contents of a run folder as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.plan.plan import Plan


@dataclass(frozen=True)
class SiteRound:
    """One site's part in a round; times in seconds, None for unreported values.

    Attributes
    ----------
    dice
        Dice of the received model on the site's validation patients, by label value.
    local_dice
        Mean Dice of the model that the site trained, on the same patients.
    length, scale, cosine
        L2 norm of the update, the factor by which it was scaled, and its cosine to the mean direction of the others.
    """

    status: str
    reason: str | None
    examples: int | None
    validation_examples: int | None
    train_loss: float | None
    validation_loss: float | None
    mean_dice: float | None
    dice: Mapping[int, float]
    local_dice: float | None
    seconds: float | None
    seconds_data: float | None
    seconds_compute: float | None
    seconds_evaluate: float | None
    epsilon: float | None
    length: float | None
    scale: float | None
    cosine: float | None


@dataclass(frozen=True)
class Round:
    """One line of ``rounds.jsonl``; ``dice`` belongs to the model after round ``model_round``."""

    number: int
    phase: str
    model_round: int
    seconds: float | None
    bytes_up: float | None
    bytes_down: float | None
    mean_dice: float | None
    dice: Mapping[int, float]
    train_loss: float | None
    sites: Mapping[str, SiteRound]


@dataclass(frozen=True)
class Site:
    """A site: its numbers of training and validation patients, and how it differs from the others."""

    name: str
    train: int | None
    validation: int | None
    differs: str


@dataclass(frozen=True)
class CaseScore:
    """One row of ``validation.csv``: the released model on one label of one validation case.

    Attributes
    ----------
    metrics
        Value by column name, without metrics that are undefined for the case.
    """

    site: str
    case: str
    label: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Example:
    """A validation case to draw: image (x, y, z) float32, truth and prediction (x, y, z) uint8, spacing in mm; RAS+."""

    site: str
    case: str
    kind: Literal["best", "worst"]
    mean_dice: float | None
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    spacing: tuple[float, float, float]


@dataclass
class RunRecord:
    """The contents of a run folder that the report needs.

    Attributes
    ----------
    labels
        Name by label value, for all known foreground labels.
    rounds
        Training rounds and the final evaluation, in order.
    contributions
        What each site contributed (``server.contributions``), if that was asked.
    notes
        One sentence for each problem with reading a file.
    """

    folder: Path
    configuration_text: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    rounds: list[Round] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    cases: list[CaseScore] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    contributions: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The federation's name; the folder's, if no file names it."""
        return str(self.summary.get("name") or self.configuration.get("name") or self.folder.resolve().name)

    @property
    def training_rounds(self) -> list[Round]:
        """The rounds in which sites trained, without the final evaluation."""
        return [line for line in self.rounds if line.phase == "train"]

    @property
    def rounds_planned(self) -> int | None:
        """Planned number of training rounds, if known."""
        planned = as_number(self.summary.get("rounds_planned", self.configuration.get("rounds")))
        return None if planned is None else int(planned)

    def line_of_model(self, model_round: int | None) -> Round | None:
        """Return the round with the scores of the model after ``model_round`` rounds, if it was scored."""
        return next((line for line in self.rounds if line.model_round == model_round), None)

    def gaps(self, site: str) -> dict[int, float]:
        """Return by how much Dice a site's own model was better than the global one after the round, by round."""
        found = {}
        for line in self.training_rounds:
            following = self.line_of_model(line.number)
            own = line.sites[site].local_dice if site in line.sites else None
            combined = following.sites[site].mean_dice if following and site in following.sites else None
            if own is not None and combined is not None:
                found[line.number] = own - combined
        return found

    def epsilon_spent(self, site: str | None = None) -> float | None:
        """Return the largest epsilon that a site, or any site, has reported; None if none has."""
        parts = (part for line in self.rounds for name, part in line.sites.items() if site in (None, name))
        return max((part.epsilon for part in parts if part.epsilon is not None), default=None)

    def label_name(self, label: int) -> str:
        """Return the label's name, or text such as ``label 3`` if no file names it."""
        return self.labels.get(label, f"label {label}")


def as_number(value: object) -> float | None:
    """Return a finite number as float, and None for anything else (text, ``null``, NaN, infinity)."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, int | float)):
        return None
    return float(value) if math.isfinite(value) else None


def as_scores(value: object) -> dict[int, float]:
    """Parse a JSON object such as ``{"1": 0.9}`` into scores by label value, without entries that are not numbers."""
    if not isinstance(value, Mapping):
        return {}
    numbers = {str(key): as_number(score) for key, score in value.items()}
    return {int(key): score for key, score in numbers.items() if key.isdecimal() and score is not None}
