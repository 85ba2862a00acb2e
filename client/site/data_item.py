"""The preflight item of the hospital's data: reads every case, unless nothing has changed since the last result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from client.data.dataset_check import check_dataset
from client.site.gpu_probe import Severity
from client.site.preflight_item import Item
from client.state_folder import read_json, write_json
from common.errors import DataError, OutputError
from common.formatting import counted
from common.imaging.datasets.case import AS_STORED, Reading


def check_data(
    root: Path,
    labels: Mapping[int, str],
    memory: Path,
    progress: Callable[[int, int], None] | None = None,
    reading: Reading = AS_STORED,
) -> Item:
    """Check every case, unless nothing has changed since the last good result.

    Parameters
    ----------
    root
        The dataset folder.
    labels
        Labels of the federation.
    memory
        File that stores the last good result.
    progress
        Called with the number of cases read and of all cases.
    reading
        How the site reads its files.
    """
    rule = reading.patient_rule.pattern if reading.patient_rule else None
    state = _dataset_fingerprint(root, [sorted(labels.items()), reading.ranges.model_dump(mode="json"), rule])
    remembered = read_json(memory)
    if remembered.get("state") == state:
        severity: Severity = "warning" if remembered.get("severity") == "warning" else "ok"
        return Item("data", severity, f"{remembered.get('text')}; unchanged since it was checked")
    try:
        report = check_dataset(root, labels, progress, reading)
    except DataError as error:
        return Item("data", "error", str(error))
    if not report.usable:
        first = next(problem for problem in report.problems if problem.severity == "error")
        count = sum(problem.severity == "error" for problem in report.problems)
        more = f" (and {count - 1} more; fedvox-client check lists them all)" if count > 1 else ""
        return Item("data", "error", f"{first.path}: {first.text}{more}")
    severity, text = "ok", counted(len(report.cases), "case")
    if report.problems:
        first, others = report.problems[0], len(report.problems) - 1
        severity = "warning"
        text += f"; {first.path}: {first.text}" + (f" (and {counted(others, 'more warning')})" if others else "")
    with contextlib.suppress(OutputError):  # the data is checked again next time; check_disk reports a full disk
        write_json(memory, {"state": state, "severity": severity, "text": text})
    return Item("data", severity, text)


def _dataset_fingerprint(root: Path, asked: object) -> str:
    total = hashlib.sha256(json.dumps(asked).encode())
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        if path.is_file():
            info = path.stat()
            total.update(os.fsencode(path.relative_to(root)))
            total.update(f"/{info.st_size}/{info.st_mtime_ns}\n".encode())
    return total.hexdigest()
