"""Entries of ``rounds.jsonl`` for a round and its sites."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from common.formatting import counted
from common.protocol.codec import Refusal, Result, SiteInfo
from server.rounds.judgement.conduct import DISPUTES


def accepted(result: Result, sha256: str | None) -> dict[str, Any]:
    """Return the entry of an accepted site, with the SHA-256 of its update or, without one, of its reply."""
    return {
        "status": "ok",
        "reason": None,
        "examples": result.examples,
        "validation_examples": result.validation_examples,
        "steps": result.steps,
        "train_loss": _known(result.train_loss),
        "validation_loss": _known(result.validation_loss),
        "mean_dice": _known(result.mean_dice),
        "dice": {str(label): _known(result.dice[label]) for label in sorted(result.dice)},
        "local_dice": _known(result.local_dice),
        "seconds": round(result.seconds, 3),
        "seconds_data": round(result.seconds_data, 3),
        "seconds_compute": round(result.seconds_compute, 3),
        "seconds_evaluate": round(result.seconds_evaluate, 3),
        "epsilon": _known(result.epsilon),
        "sha256": sha256,
        "length": None,
        "scale": None,
        "cosine": None,
        "likeness": None,
        "personal_mean_dice": _known(result.personal_mean_dice),
        "personal_dice": {str(label): _known(dice) for label, dice in sorted(result.personal_dice.items())},
        "ledger_head": result.ledger_head,
        "audit_head": result.audit_head,
    }


def digests(rounds: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the SHA-256 of every update that counted in these rounds."""
    sites = [site for line in rounds if line["phase"] == "train" for site in line["sites"].values()]
    return frozenset(site["sha256"] for site in sites if site["sha256"] is not None)


def contributors(rounds: Iterable[Mapping[str, Any]], last: int) -> list[str]:
    """Return the names of the sites with an accepted update up to round ``last``."""
    trained = [line for line in rounds if line["phase"] == "train" and line["round"] <= last]
    return sorted({name for line in trained for name, site in line["sites"].items() if site["status"] == "ok"})


def reasons(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return why sites did not count in the last recorded round: ``non-finite-loss at 3 of 3 sites, round 1``."""
    if not rounds:
        return "no round was recorded"
    last = rounds[-1]
    codes = Counter(site["reason"] for site in last["sites"].values() if site["reason"])
    total = counted(len(last["sites"]), "site")
    found = [f"{code} at {count} of {total}" for code, count in codes.most_common()]
    return ", ".join([*(found or ["too few sites took part"]), f"round {last['round']}"])


def blamed(line: Mapping[str, Any]) -> set[str]:
    """Return the sites of a round that were refused for something that they alone did; losses on the way are not."""
    refused = {name: site["reason"] for name, site in line["sites"].items() if site["status"] == "refused"}
    return {name for name, reason in refused.items() if reason not in (*DISPUTES, Refusal.MISSING_UPDATE)}


def not_counted(status: str, reason: str, info: SiteInfo, labels: Collection[int]) -> dict[str, Any]:
    """Return the entry of a site that is not counted, without anything that it sent."""
    empty = Result(
        site=info.site,
        run="",
        round=0,
        examples=info.train_examples,
        validation_examples=info.validation_examples,
        steps=0,
        train_loss=math.nan,
        validation_loss=math.nan,
        dice=dict.fromkeys(labels, math.nan),
        seconds=0.0,
        seconds_data=0.0,
        seconds_compute=0.0,
        seconds_evaluate=0.0,
    )
    return accepted(empty, None) | {"status": status, "reason": reason}


def longest(rounds: Iterable[Mapping[str, Any]]) -> float:
    """Return the highest median length of a round's updates; 0 before the first."""
    lengths = [[site["length"] for site in line["sites"].values() if site["length"] is not None] for line in rounds]
    return max((statistics.median(known) for known in lengths if known), default=0.0)


def scores(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean Dice of every accepted site that reported one, from a round's line."""
    accepted = {name: site["mean_dice"] for name, site in line["sites"].items() if site["status"] == "ok"}
    return {name: score for name, score in accepted.items() if score is not None}


def totals(sites: Mapping[str, Mapping[str, Any]], labels: Collection[int]) -> dict[str, Any]:
    """Return means over the accepted sites: Dice, also by label and of personal models, and training loss.

    The loss is weighted by patients.
    """
    counted = [line for line in sites.values() if line["status"] == "ok"]
    losses = [(line["train_loss"], line["examples"]) for line in counted if line["train_loss"] is not None]
    patients = sum(examples for _, examples in losses)
    return {
        "mean_dice": mean(line["mean_dice"] for line in counted),
        "dice": {str(label): mean(line["dice"][str(label)] for line in counted) for label in sorted(labels)},
        "personal_mean_dice": mean(line["personal_mean_dice"] for line in counted),
        "train_loss": sum(loss * examples for loss, examples in losses) / patients if patients else None,
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values, or None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
