"""The preflight item of the hospital's data: reads every case, unless nothing has changed since the last result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from client.data.dataset_check import check_dataset
from client.data.dataset_report import DatasetReport
from client.runner.site_split import labelled_cases
from client.site.gpu_probe import Severity
from client.site.preflight_item import Item
from common.errors import DamagedFileError, DataError, OutputError
from common.formatting import counted
from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.comparison import OWN_TERMS, SiteTerms, Wanted
from common.plan.base import Frozen
from common.system.state_file import read_sealed, write_sealed


def check_data(
    root: Path,
    wanted: Wanted,
    memory: Path,
    progress: Callable[[int, int], None] | None = None,
    terms: SiteTerms = OWN_TERMS,
) -> Item:
    """Check every case, and preprocess the largest, unless nothing has changed since the last good result.

    Parameters
    ----------
    root
        The dataset folder.
    wanted
        What the federation wants of it.
    memory
        File that stores the last good result.
    progress
        Called with the number of cases read and of all cases.
    terms
        What the hospital's site file says about its data.
    """
    state = _dataset_fingerprint(root, [_plain(wanted), _plain(terms)])
    remembered: dict[str, Any] = {}
    with contextlib.suppress(DamagedFileError):  # missing or damaged: the data is checked now, and this written anew
        remembered, _ = read_sealed(memory, "")
    if remembered.get("state") == state:
        severity: Severity = "warning" if remembered.get("severity") == "warning" else "ok"
        return Item("data", severity, f"{remembered.get('text')}; unchanged since it was checked")
    try:
        report = check_dataset(root, wanted, progress, terms)
        if report.usable:
            _preprocess_largest(report, wanted, terms)
    except DataError as error:
        return Item("data", "error", str(error))
    if not report.usable:
        first = next((problem for problem in report.problems if problem.severity == "error"), None)
        if first is None:
            return Item("data", "error", f"{root}: there is no complete case")
        count = sum(problem.severity == "error" for problem in report.problems)
        more = f" (and {count - 1} more; fedvox-client check lists them all)" if count > 1 else ""
        return Item("data", "error", f"{first}{more}")
    severity, text = "ok", counted(len(report.cases), "case")
    if report.problems:
        first, others = report.problems[0], len(report.problems) - 1
        severity = "warning"
        text += f"; {first}" + (f" (and {counted(others, 'more warning')})" if others else "")
    with contextlib.suppress(OutputError):  # the data is checked again next time; check_disk reports a full disk
        write_sealed(memory, {"state": state, "severity": severity, "text": text})
    return Item("data", severity, text)


def _preprocess_largest(report: DatasetReport, wanted: Wanted, terms: SiteTerms) -> None:
    """Do with one case what start does with all of them."""
    if wanted.preprocessing is None:
        return
    largest = max(report.cases, key=lambda case: math.prod(case.shape or (0,)))
    case = labelled_cases(report.root, wanted, terms).get(largest.name)
    if case is not None:
        CaseCache(None, wanted.preprocessing, wanted.labels or ()).get(case)


def _plain(value: Wanted | SiteTerms) -> dict[str, Any]:
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    plain = {name: part.model_dump(mode="json") if isinstance(part, Frozen) else part for name, part in parts.items()}
    return {name: part.pattern if isinstance(part, re.Pattern) else part for name, part in plain.items()}


def _dataset_fingerprint(root: Path, asked: object) -> str:
    total = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        if path.is_file():
            info = path.stat()
            total.update(os.fsencode(path.relative_to(root)))
            total.update(f"/{info.st_size}/{info.st_mtime_ns}\n".encode())
    return total.hexdigest()
