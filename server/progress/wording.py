"""What both progress displays say, in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from server.formatting import NOTHING, format_seconds


@dataclass
class RoundTimes:
    """How long finished training rounds took, and what that means for those that are left."""

    rounds: int = 0
    finished: list[float] = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        """Counts a training round, unless its line has no time."""
        if line.get("phase", "train") == "train" and isinstance(line.get("seconds"), int | float):
            self.finished.append(float(line["seconds"]))

    def left(self, round: int, elapsed: float = 0.0) -> float | None:
        """Seconds until all rounds are done, when ``round`` are done and the next has run for ``elapsed``."""
        if not self.finished:
            return None
        usual = median(self.finished)
        remaining = max(self.rounds - round, 0)
        return max(usual * remaining - min(elapsed, usual), 0.0) if remaining else 0.0


def one_line(text: str) -> str:
    """Text without anything that would move a cursor or break a line."""
    return "".join(character if character.isprintable() else " " for character in text)


def number_text(value: object) -> str:
    """A score or loss with three digits, or a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else NOTHING


def seconds_text(line: Mapping[str, Any]) -> str:
    """The time that a site or a round took."""
    seconds = line.get("seconds")
    return format_seconds(float(seconds)) if isinstance(seconds, int | float) else NOTHING


def site_summary(line: Mapping[str, Any]) -> str:
    """Loss, Dice, time and privacy spent of a site that took part; status and reason of one that did not."""
    status = str(line.get("status", "ok"))
    if status != "ok":
        reason = line.get("reason")
        return f"{status} ({reason})" if reason else status
    parts = [f"Dice {number_text(line.get('mean_dice'))}", seconds_text(line)]
    if line.get("train_loss") is not None:
        parts.insert(0, f"loss {number_text(line['train_loss'])}")
    if line.get("epsilon") is not None:
        parts.append(f"epsilon {number_text(line['epsilon'])}")
    return ", ".join(parts)


def round_summary(line: Mapping[str, Any]) -> str:
    """A round is scored before it trains: the Dice belongs to the model of the round before."""
    model_round = line.get("model_round", int(line["round"]) - 1)
    return f"mean Dice {number_text(line.get('mean_dice'))} (model after round {model_round})"
