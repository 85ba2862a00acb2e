"""The released model's Dice at each site with 95 % intervals, from what the run folder holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from common.models.bundle_file import FEWEST
from server.comparison.statistics import bootstrap
from server.formatting import scores_are_noised
from server.run_store.record import RunRecord

_LEFT_OUT = f"Scores of fewer than {FEWEST} are left out, also of the mean: they would tell about single patients."


@dataclass(frozen=True)
class SiteScore:
    """The released model's mean Dice over a site's validation scans and all labels.

    Attributes
    ----------
    count
        Number of validation scans, or of patients under differential privacy over a network; None if unknown.
    dice
        None if the site reported no score, or too few scans have one.
    low, high
        Ends of the 95 % interval; None if there is none.
    labels
        Mean Dice by label.
    """

    site: str
    count: int | None
    dice: float | None
    low: float | None
    high: float | None
    labels: dict[int, float]


@dataclass(frozen=True)
class Scores:
    """Scores of all sites, and how their intervals were computed, in a sentence."""

    sites: tuple[SiteScore, ...]
    method: str


def site_scores(run: RunRecord, model_round: int) -> Scores:
    """Return the scores of the model after ``model_round`` rounds; none of fewer than ``FEWEST`` scans.

    Simulated sites have the score of every validation case, which is resampled (bootstrap). Sites of a network send a
    mean and a number of scans. For a mean of n independent values between 0 and 1, Hoeffding's inequality (1963) bounds
    the error at 95 % by sqrt(ln(40) / 2n), whatever their distribution. Means with noise have no interval here.
    """
    if run.cases:
        sites = tuple(_by_case(run, site.name) for site in run.sites)
        method = (
            "Intervals: 95 % percentile bootstrap over a site's validation scans; too narrow where patients have "
            "several."
        )
        if isinstance(run.configuration.get("privacy"), dict):
            method += " The simulation computed these scores without noise; the privacy guarantee does not cover them."
        return Scores(sites, f"{method} {_LEFT_OUT}")
    noised = scores_are_noised(run.configuration)
    if noised:
        method = "The scores carry the noise of differential privacy, so no interval is given."
    else:
        method = (
            "Sites send means only. The intervals (95 %, Hoeffding) hold for any distribution of scores and are "
            "therefore wide; too narrow where patients have several scans, or scans lack labels."
        )
    sites = tuple(_by_mean(run, site.name, model_round, noised) for site in run.sites)
    return Scores(sites, f"{method} {_LEFT_OUT}")


def mean_over_sites(scores: Sequence[SiteScore]) -> float | None:
    """Return the mean of the known scores; None if there are none."""
    known = [score.dice for score in scores if score.dice is not None]
    return fmean(known) if known else None


def hoeffding_half_width(count: int) -> float:
    """Return the half-width of the 95 % interval for a mean of ``count`` values between 0 and 1."""
    return math.sqrt(math.log(40) / (2 * count))


def _by_case(run: RunRecord, site: str) -> SiteScore:
    by_label: dict[int, list[float]] = {}
    by_case: dict[str, list[float]] = {}
    for case in run.cases:
        if case.site == site and "dice" in case.metrics:
            by_label.setdefault(case.label, []).append(case.metrics["dice"])
            by_case.setdefault(case.case, []).append(case.metrics["dice"])
    values = np.array([[fmean(dice)] for dice in by_case.values()], dtype=np.float64).reshape(len(by_case), 1)
    interval = bootstrap([values], lambda means: means[..., 0])
    labels = {label: fmean(dice) for label, dice in by_label.items()}
    count = next((one.validation for one in run.sites if one.name == site), None)
    if interval is None or len(by_case) < FEWEST:
        return SiteScore(site, count, None, None, None, {})
    return SiteScore(site, count, interval.value, interval.low, interval.high, labels)


def _by_mean(run: RunRecord, site: str, model_round: int, noised: bool) -> SiteScore:
    line = run.line_of_model(model_round)
    part = None if line is None else line.sites.get(site)
    known = next((one.validation for one in run.sites if one.name == site), None)
    count = (part.validation_examples if part is not None else None) or known or 0
    if part is None or part.mean_dice is None or count < FEWEST:
        return SiteScore(site, known, None, None, None, {})
    if noised:
        return SiteScore(site, count, part.mean_dice, None, None, dict(part.dice))
    half = hoeffding_half_width(count)
    low, high = max(0.0, part.mean_dice - half), min(1.0, part.mean_dice + half)
    return SiteScore(site, count, part.mean_dice, low, high, dict(part.dice))
