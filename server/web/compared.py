"""A comparison's folder as the pages see it: its results as far as they are there."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from common.errors import FedvoxError
from common.formatting import fixed
from common.web.marks import mark_of
from server.formatting import NOTHING
from server.run_store.folder import REPORT_FILE
from server.run_store.record import as_number
from server.simulation.leftovers import COMPARISON_FILE, RESULTS_FILE

_DIGITS = {"dice": 3, "dice_of_sites": 3, "hd95_mm": 2, "nsd": 3}


class WatchedComparison:
    """One comparison.

    Parameters
    ----------
    path
        Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return whether a folder is that of a comparison."""
        return (path / COMPARISON_FILE).is_file()

    def mark(self) -> Hashable:
        """Return a value that changes when there is news."""
        return mark_of(self.path / RESULTS_FILE, self.report)

    @property
    def report(self) -> Path:
        """Its report, if there is one yet."""
        return self.path / REPORT_FILE

    def name(self) -> str:
        """Return the folder's name."""
        return self.path.resolve().name

    def results(self) -> dict[str, Any]:
        """Return what its page shows.

        Raises
        ------
        FedvoxError
            There are no results, or they cannot be read.
        """
        file = self.path / RESULTS_FILE
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return _shown(content)
        except FileNotFoundError:
            raise FedvoxError(f"{file}: is not there yet; the first run of the comparison is not finished") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise FedvoxError(f"{file}: cannot be read; repeat the comparison with the same --out") from None


def _shown(results: Mapping[str, Any]) -> dict[str, Any]:
    runs = results["runs"]
    return {
        "name": str(results["name"]),
        "done": sum(run["status"] == "finished" for run in runs),
        "runs": [{key: run.get(key) for key in ("arm", "seed", "model_site", "status", "problem")} for run in runs],
        "verdict": str(results.get("verdict") or ""),
        "arms": [
            {"arm": row["arm"], "meaning": row["meaning"], "steps": row.get("steps"), "seeds": len(row["seeds"])}
            | {key: _interval(row.get(key), digits) for key, digits in _DIGITS.items()}
            for row in results["arms"]
        ],
        "worse": [
            {"arm": row["arm"], "site": row["site"], "difference": _interval(row["difference"], 3, signed=True)}
            | {"too_few": bool(row["too_few"]), "clearly": bool(row["clearly_worse"])}
            for row in results["against_alone"]
            if row["worse"]
        ],
    }


def _interval(interval: Mapping[str, Any] | None, digits: int, signed: bool = False) -> tuple[str, str, str]:
    """Return a value and the ends of its interval as texts; the ends are empty where there is none."""
    if interval is None or (value := as_number(interval["value"])) is None:
        return NOTHING, "", ""
    low, high = (as_number(interval.get(end)) for end in ("low", "high"))
    if low is None or high is None:
        return fixed(value, digits, signed), "", ""
    return fixed(value, digits, signed), fixed(low, digits, signed), fixed(high, digits, signed)
