"""How much each site's update counts in the next model (``strategy.weights``)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from common.errors import ConfigError


def site_weights(rule: str | Mapping[str, int], patients: Mapping[str, int]) -> dict[str, float]:
    """Return the weight of each site.

    A declared number of patients cannot be checked, so by default it counts at most twice the median of what the other
    sites of the round declare.

    Parameters
    ----------
    rule
        ``strategy.weights`` of the federation file.
    patients
        Site -> declared number of training patients, of the sites whose updates count.

    Raises
    ------
    ConfigError
        The file gives numbers, but none for one of the sites.
    """
    if isinstance(rule, Mapping):
        if missing := sorted(set(patients) - set(rule)):
            raise ConfigError(f"strategy.weights: has no number for {', '.join(missing)}; add it")
        return {site: float(rule[site]) for site in patients}
    if rule == "uniform":
        return dict.fromkeys(patients, 1.0)
    counts = {site: float(count) for site, count in patients.items()}
    if rule == "patients":
        return counts
    cap = float(rule.removeprefix("capped:"))
    return {site: min(count, cap * _median_of_others(site, counts)) for site, count in counts.items()}


def _median_of_others(site: str, counts: Mapping[str, float]) -> float:
    others = [count for other, count in counts.items() if other != site]
    return statistics.median(others) if others else counts[site]
