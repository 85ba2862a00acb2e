"""Format durations, sizes and scores for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.formatting import counted, visible

NOTHING = "–"
"""Shown in place of a missing value."""

_SPECIAL_IN_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&#@$]|^[-+=]|(?<=:)//|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line, without links, markup or HTML."""
    return _SPECIAL_IN_MARKDOWN.sub(lambda match: "".join(f"\\{sign}" for sign in match[0]), visible(text))


def format_seconds(seconds: float) -> str:
    """Format a duration in seconds, such as ``8.4 s``, ``1 min 26 s`` or ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float) -> str:
    """Format a size in bytes with decimal units, such as ``640 bytes``, ``1.2 MB`` or ``12 GB``."""
    if size < 1000:
        return counted(round(size), "byte")
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"


def format_best(mean_dice: float, round_number: int, noised: bool) -> str:
    """Format a run's best score as one line, noting a noisy score or a run that did not improve.

    Parameters
    ----------
    mean_dice
        Mean over sites and labels.
    round_number
        The round after which the model reached it; 0 is the initial model.
    noised
        Whether the sites' scores carry differential-privacy noise.
    """
    line = f"best mean validation Dice {mean_dice:.3f}, after round {round_number}"
    if noised:
        line = f"mean validation Dice {mean_dice:.3f} (with noise), after round {round_number}"
    if round_number == 0:
        line += ": training did not improve on the model that the run started from"
    return line


def scores_are_noised(federation: Mapping[str, Any]) -> bool:
    """Return whether the federation in a run folder adds noise to the sites' scores."""
    privacy = federation.get("privacy")
    return isinstance(privacy, Mapping) and privacy.get("validation", "noised") == "noised"
