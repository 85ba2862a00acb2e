"""The wording that both progress displays share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from common.formatting import visible
from server.formatting import NOTHING, format_seconds


@dataclass
class RoundTimes:
    """Times of finished training rounds, and an estimate for the remaining ones."""

    rounds: int = 0
    finished: list[float] = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        """Record the time of a training round; ignore lines without one."""
        if line.get("phase", "train") == "train" and isinstance(line.get("seconds"), int | float):
            self.finished.append(float(line["seconds"]))

    def left(self, round: int, elapsed: float = 0.0) -> float | None:
        """Estimate the seconds left after ``round`` rounds, when the next has run for ``elapsed`` seconds."""
        if not self.finished:
            return None
        usual = median(self.finished)
        remaining = max(self.rounds - round, 0)
        return max(usual * remaining - min(elapsed, usual), 0.0) if remaining else 0.0


def one_line(text: str) -> str:
    """Return a text as one line, with its control characters made visible."""
    return visible(" ".join(text.splitlines()))


def number_text(value: object) -> str:
    """Format a score or loss with three decimals, or as a dash."""
    return f"{value:.3f}" if isinstance(value, int | float) else NOTHING


def seconds_text(line: Mapping[str, Any]) -> str:
    """Format the time that a site or a round took."""
    seconds = line.get("seconds")
    return format_seconds(float(seconds)) if isinstance(seconds, int | float) else NOTHING


def site_summary(line: Mapping[str, Any]) -> str:
    """Summarise a site's loss, Dice, time and epsilon, or status and reason if it did not take part."""
    status = str(line.get("status", "ok"))
    if status != "ok":
        reason = line.get("reason")
        return f"{status} ({reason})" if reason else status
    parts = [f"Dice {number_text(line.get('mean_dice'))}", seconds_text(line)]
    if line.get("train_loss") is not None:
        parts.insert(0, f"loss {number_text(line['train_loss'])}")
    if line.get("local_dice") is not None:
        parts.insert(-1, f"own model {number_text(line['local_dice'])}")
    if line.get("personal_mean_dice") is not None:
        parts.insert(-1, f"personal model {number_text(line['personal_mean_dice'])}")
    if line.get("epsilon") is not None:
        parts.append(f"epsilon {number_text(line['epsilon'])}")
    return ", ".join(parts)


def round_summary(line: Mapping[str, Any]) -> str:
    """Summarise a round by its mean Dice.

    Sites score the model before they train: the Dice belongs to the model of the previous round.
    """
    model_round = line.get("model_round", int(line["round"]) - 1)
    own = line.get("personal_mean_dice")
    personal = "" if own is None else f", personal models {number_text(own)}"
    return f"mean Dice {number_text(line.get('mean_dice'))}{personal} (model after round {model_round})"
