"""Statement of a ledger, for the hospital's data-protection officer and for machines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.consent.site_config import SitePrivacy
from client.ledger.account import Account, SpendLine, TimedRound
from client.ledger.patient_identity import Patient, identifier_of
from client.ledger.recognition import WITHOUT_IDENTIFIERS, recognise
from common.formatting import counted
from common.privacy.accounting import epsilon_of

TITLE = "PRIVACY SPENT BY THIS HOSPITAL'S PATIENTS"
HOW_TO_READ = (
    "Epsilon bounds how much anyone can learn about any one patient from what left the building; smaller means "
    "stronger protection. Several uses of the same patient count together: the total is computed from all of them, and "
    "is less than their sum. A dataset is a set of patients. Each is known by a hash of their identifier, where your "
    "site has one, and by the content of their scans, whatever the files and folders are called. Every round is "
    "recorded before it begins, so a failed round counts as well."
)
_USES = {"training": "trained on", "validation": "scored on"}


@dataclass(frozen=True)
class Folder:
    """The patients of a dataset folder."""

    name: str
    patients: Sequence[Patient]


def limit_of(account: Account, site: SitePrivacy | None) -> SitePrivacy:
    """Return the limit on epsilon: the site file's, or else the last round's."""
    if site is not None:
        return site
    if not account.rounds:
        return SitePrivacy()
    last = account.rounds[-1].entry
    return SitePrivacy(max_epsilon=last.max_epsilon, delta=last.delta)


def view(account: Account, limit: SitePrivacy, folder: Folder | None = None) -> dict[str, Any]:
    """Return the statement as plain values; an infinite epsilon, which only a recovery causes, is None.

    Parameters
    ----------
    account
        Content of the ledger.
    limit
        See ``limit_of``.
    folder
        Show only datasets that include one of these patients, and what these patients have spent.
    """
    shown = list(account.datasets)
    content: dict[str, Any] = {"limit": {"max_epsilon": limit.max_epsilon, "delta": limit.delta}}
    content["recoveries"] = [
        {"time": item.time} | item.entry.model_dump(exclude={"superseded"}) for item in account.recoveries
    ]
    if folder is not None:
        memberships = account.memberships(folder.patients)
        ours = frozenset[str]().union(*memberships.values())
        shown = [dataset for dataset in shown if dataset in ours]
        content["data"] = {
            "folder": folder.name,
            "patients": len(memberships),
            "known": sum(bool(datasets) for datasets in memberships.values()),
            "recognised": vars(found := recognise(account, folder.patients)) | {"text": str(found)},
            "groups": [
                {"epsilon": _finite(epsilon), "patients": count}
                for epsilon, count in account.epsilons({"training": folder.patients}, limit.delta)
            ],
        } | _balance(account, folder.patients, limit)
    return content | {"datasets": [_dataset(account, dataset, limit) for dataset in shown]}


def as_text(content: Mapping[str, Any], width: int = 100) -> str:
    """Render the statement as text; everything but tables is wrapped to ``width`` columns."""
    limit = content["limit"]
    most = limit["max_epsilon"]
    rule = "none; to set one, use privacy.max_epsilon in the site.yaml of the site's state folder (--kit shows it)"
    if most is not None:
        rule = f"no patient may spend more than epsilon {most:g} at delta {limit['delta']:g}, all federations together"
    parts = [f"{TITLE}\nLedger: {content['ledger']}\nLimit: {rule}."]
    parts += [_wrapped(_recovered(item), width) for item in content["recoveries"]]
    if (data := content.get("data")) is not None:
        groups = [f"{group['patients']} at {_epsilon_text(group['epsilon'])}" for group in data["groups"]]
        text = (
            f"In {data['folder']}: {counted(data['patients'], 'patient')}, {data['known']} of them in this ledger "
            f"({', '.join(groups)}). {_told(data, limit)}"
        )
        if told := data["recognised"]["text"]:
            text += f" {told[0].upper()}{told[1:]}."
        parts.append(_wrapped(text, width))
    if not content["datasets"]:
        since = " since then" if content["recoveries"] else ""
        parts.append(f"Nothing was spent{since}." if data is None else f"Nothing was spent on these patients{since}.")
    for dataset in content["datasets"]:
        named = f"{dataset['identified']} of them have an identifier. " if dataset["identified"] else ""
        size = f"{counted(dataset['patients'], 'patient')}. {named}"
        head = f"Dataset {dataset['dataset'][:12]}: {size}{_told(dataset, limit)}"
        parts.append("\n".join([_wrapped(head, width), *_table(dataset["uses"])]))
    if any(item["identified"] < item["patients"] for item in content["datasets"]):
        parts.append(_wrapped(WITHOUT_IDENTIFIERS, width))
    parts.append(_wrapped(HOW_TO_READ, width))
    return "\n\n".join(parts)


def _recovered(item: Mapping[str, Any]) -> str:
    taken = f"epsilon {item['epsilon']:g} at delta {item['delta']:g}" if item["epsilon"] is not None else "everything"
    kept = f" The previous file is kept as {item['set_aside']}." if item["set_aside"] else ""
    return (
        f"RECOVERED {item['time'][:10]} by {item['user']} (account {item['account']}): {item['reason']}. "
        f"Every patient is assumed to have spent {taken} before; {item['known']:.3g} was proven.{kept}"
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _epsilon_text(epsilon: float | None) -> str:
    return "an unlimited epsilon" if epsilon is None else f"epsilon {epsilon:.2f}"


def _dataset(account: Account, dataset: str, limit: SitePrivacy) -> dict[str, Any]:
    patients = account.datasets[dataset]
    values: dict[str, Any] = {"dataset": dataset, "patients": len(patients)} | _balance(account, patients, limit)
    values["identified"] = sum(identifier_of(patient) is not None for patient in patients)
    return values | {"uses": _uses(account.rounds, dataset, limit.delta)}


def _balance(account: Account, patients: Iterable[Patient], limit: SitePrivacy) -> dict[str, float | None]:
    spent = account.epsilon({"training": list(patients)}, limit.delta)
    left = None if limit.max_epsilon is None else max(0.0, limit.max_epsilon - spent)
    return {"epsilon": _finite(spent), "left": left}


def _uses(rounds: Iterable[TimedRound], dataset: str, delta: float) -> list[dict[str, Any]]:
    """Return one entry for each federation, use and mechanism."""
    found: dict[tuple[str, str, str, float, float], list[tuple[TimedRound, SpendLine]]] = {}
    for item in rounds:
        for line in item.entry.spends:
            if line.dataset == dataset:
                entry = item.entry
                key = (entry.federation, entry.digest, line.purpose, line.noise_multiplier, line.sample_rate)
                found.setdefault(key, []).append((item, line))
    return [
        {
            "federation": federation,
            "digest": digest,
            "purpose": purpose,
            "mechanism": group[0][1].mechanism,
            "noise_multiplier": noise,
            "sample_rate": rate,
            "steps": sum(line.steps for _, line in group),
            "runs": len({item.entry.run for item, _ in group}),
            "rounds": len(group),
            "first": group[0][0].time,
            "last": group[-1][0].time,
            "epsilon": epsilon_of([line.spend for _, line in group], delta),
        }
        for (federation, digest, purpose, noise, rate), group in found.items()
    ]


def _told(balance: Mapping[str, Any], limit: Mapping[str, Any]) -> str:
    spent = f"The patient who has spent the most: {_epsilon_text(balance['epsilon'])} at delta {limit['delta']:g}"
    if limit["max_epsilon"] is None:
        return f"{spent}."
    return f"{spent}; {balance['left']:.2f} of {limit['max_epsilon']:g} are left."


def _table(uses: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ("federation", "patients were", "runs", "rounds", "first (UTC)", "last (UTC)", "noise", "sample", "steps")
    rows = [(*columns, "epsilon")]
    for use in uses:
        rows.append(
            (
                f"{use['federation']} ({use['digest'][:8]})",
                _USES[use["purpose"]],
                str(use["runs"]),
                str(use["rounds"]),
                use["first"][:10],
                use["last"][:10],
                f"{use['noise_multiplier']:.3g}",
                f"{use['sample_rate']:.3g}",
                str(use["steps"]),
                f"{use['epsilon']:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    cells = (zip(row, widths, strict=True) for row in rows)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in cells]


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, max(width, 40), break_on_hyphens=False, break_long_words=False)
