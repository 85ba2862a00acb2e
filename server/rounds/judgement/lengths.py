"""How far each update is scaled down, so that no site moves the model further than the others do."""

from __future__ import annotations

from collections.abc import Mapping

MARGIN = 2.0
"""Honest updates differ in length, and those of few patients are noisier: up to this factor they stay as they are."""


def scales(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the factor by which each site's update is multiplied, at most 1.

    An update longer than ``MARGIN`` times the (upper) median of the other sites' lengths is scaled down to that median.
    No site is its own witness, and a minority of short updates shortens nobody else's. Of two sites, the longer update
    is scaled down to the shorter: that slows training, and cannot wear the model down.

    Parameters
    ----------
    norms
        Site -> L2 norm of its update, positive; of the sites whose updates count in the round.
    """
    found = {}
    for site, norm in norms.items():
        others = sorted(value for other, value in norms.items() if other != site)
        median = others[len(others) // 2] if others else norm
        found[site] = median / norm if norm > MARGIN * median else 1.0
    return found
