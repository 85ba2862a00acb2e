"""Whether combining the updates loses what sites learn: their own models against the global one that comes of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FAR = 0.15
"""Dice by which the global model is far below a site's own."""
SPAN = 5
"""Fewest rounds, from the first to the last measured one: as a model begins to learn, the mean of two good ones may be
bad for a round or three.
"""


def gaps(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Return by how much Dice the sites' own models were better than the next global one.

    Parameters
    ----------
    lines
        Lines of ``rounds.jsonl``.

    Returns
    -------
    dict[int, dict[str, float]]
        Round -> site -> mean Dice of the model that the site trained in this round, less that of the global model after
        the round, both on the site's validation patients. Only rounds in which both are known.
    """
    own = {line["round"]: _known(line, "local_dice") for line in lines if line["phase"] == "train"}
    found = {}
    for line in lines:
        trained, combined = own.get(line["model_round"], {}), _known(line, "mean_dice")
        if both := sorted(set(trained) & set(combined)):
            found[line["model_round"]] = {site: trained[site] - combined[site] for site in both}
    return found


def far_below_since(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the round since which the global model has been far below most sites' own; None if it is not.

    It must have been so in every measured round since then, and for ``SPAN`` rounds.
    """
    since = last = None
    for number, by_site in sorted(gaps(lines).items(), reverse=True):
        if statistics.median_low(by_site.values()) <= FAR:
            break
        since, last = number, last or number
    return since if since is not None and last is not None and last - since + 1 >= SPAN else None


def _known(line: Mapping[str, Any], key: str) -> dict[str, float]:
    accepted = {name: site.get(key) for name, site in line["sites"].items() if site["status"] == "ok"}
    return {name: value for name, value in accepted.items() if value is not None}
