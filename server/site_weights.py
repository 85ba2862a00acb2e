"""How much each site's update counts in the next model (``strategy.weights``)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from common.errors import ConfigError

IMPLAUSIBLE, PLAUSIBLE_PATIENTS = 10.0, 100.0
"""More than the first times the median of the other sites' patients is not believed, from the second on: in a small
federation honest sites have 12 patients and one."""


def site_weights(rule: str | Mapping[str, int], patients: Mapping[str, int]) -> dict[str, float]:
    """Return the weight of each site.

    A declared number of patients cannot be checked, so by default it counts at most twice the median of what the other
    sites of the round declare, and one that is ``overstated`` counts as that median.

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
    cap = _cap_of(rule)
    capped = {site: min(count, cap * _median_of_others(site, counts)) for site, count in counts.items()}
    return capped | overstated(rule, patients)


def overstated(rule: str | Mapping[str, int], patients: Mapping[str, int]) -> dict[str, float]:
    """Return the sites that declare implausibly many patients, with the number as which they count.

    Under a cap, that is the median of the other sites' numbers, if a site declares more than ``IMPLAUSIBLE`` times as
    many, and more than ``PLAUSIBLE_PATIENTS``; a larger cap takes the place of ``IMPLAUSIBLE``. Other rules believe
    what a site declares, or ignore it.
    """
    if isinstance(rule, Mapping) or not rule.startswith("capped:"):
        return {}
    bound = max(IMPLAUSIBLE, _cap_of(rule))
    counts = {site: float(count) for site, count in patients.items()}
    medians = {site: _median_of_others(site, counts) for site in counts}
    return {
        site: medians[site] for site, count in counts.items() if count > max(bound * medians[site], PLAUSIBLE_PATIENTS)
    }


def _cap_of(rule: str) -> float:
    return float(rule.removeprefix("capped:"))


def _median_of_others(site: str, counts: Mapping[str, float]) -> float:
    others = [count for other, count in counts.items() if other != site]
    return statistics.median(others) if others else counts[site]
