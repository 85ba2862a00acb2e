"""``data.json``: which files and patients a run began with, so that a resumed one goes on with the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig, as_json
from common.errors import DamagedFileError, DataError
from common.imaging.cache.entry_file import FileDigests
from common.imaging.datasets.case import Case
from common.imaging.datasets.dataset import Dataset
from common.imaging.threads import map_in_threads
from server.progress.events import EventSink, Notice
from server.run_store.folder import RESTORE, RunFolder

DATA_FILE = "data.json"
_REMEDY = "put back what the run began with, or start a new run in another folder"


def record_data(folder: RunFolder, config: FederationConfig, dataset: Dataset, cache: Path | None) -> None:
    """Write ``data.json``: the digests of every case's files, its patient, and the digest of the partition's table.

    Raises
    ------
    DataError
        If a file cannot be read.
    """
    folder.write_text(DATA_FILE, as_json(_describe(config, dataset, dataset.cases, cache)))


def check_data(
    folder: RunFolder, config: FederationConfig, dataset: Dataset, cache: Path | None, emit: EventSink
) -> Dataset:
    """Check that the data are those that the run began with; cases that were added since are told and left out.

    Returns
    -------
    Dataset
        The dataset with the cases that the run began with; with all of them if ``data.json`` is missing.

    Raises
    ------
    DataError
        A case's file or patient was changed, or a case is gone.
    DamagedFileError
        ``data.json`` cannot be read.
    """
    file = folder.path / DATA_FILE
    if not file.exists():
        return dataset  # the run has not begun, or began with an earlier version of Fedvox
    try:
        before = json.loads(file.read_bytes())
        cases, table = dict(before["cases"]), before["table"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedFileError(file, "cannot be read", RESTORE) from None
    known = [case for case in dataset.cases if case.name in cases]
    now = _describe(config, dataset, known, cache)
    if gone := sorted(set(cases) - set(now["cases"])):
        raise DataError(dataset.root, f"case {_first(gone)} is gone since the run began; {_REMEDY}")
    changed = [name for name, found in now["cases"].items() if found != cases[name]]
    if changed:
        name = changed[0]
        what = _what_changed(cases[name], now["cases"][name])
        raise DataError(dataset.root, f"case {_first(changed)}: {what} since the run began; {_REMEDY}")
    if added := sorted({case.name for case in dataset.cases} - set(cases)):
        emit(Notice(f"{dataset.root}: case {_first(added)} was added since the run began, and takes no part in it"))
    if table != now["table"]:
        emit(Notice(f"{dataset.root}: the table of the sites was changed; the run keeps the sites that it began with"))
    return replace(dataset, cases=tuple(known))


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    files = {**before["files"], **now["files"]}
    for name in files:
        if before["files"].get(name) != now["files"].get(name):
            return f"{name} was {'changed' if name in before['files'] and name in now['files'] else 'added or removed'}"
    return "it belongs to another patient (patients.csv, or PatientID of DICOM)"


def _describe(config: FederationConfig, dataset: Dataset, cases: Iterable[Case], cache: Path | None) -> dict[str, Any]:
    digests = FileDigests(cache)

    def describe(case: Case) -> dict[str, Any]:
        return {
            "patient": case.owner,
            "files": {os.path.relpath(path, dataset.root): digests.digest(path) for path in case.files},
        }

    chosen = list(cases)
    found = map_in_threads(describe, chosen, os.cpu_count() or 1)
    partition = config.simulation.partition if config.simulation else None
    table = getattr(partition, "file", None)
    described = {
        "cases": {case.name: each for case, each in zip(chosen, found, strict=True)},
        "table": digests.digest(dataset.root / table) if table else None,
    }
    digests.save()
    return described
