"""Read a run folder into a ``RunRecord``.

Reading is tolerant: a run may be unfinished, or may have been interrupted while a line was written. Missing files stay
empty, and each unreadable part becomes a note in the report.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from common.config.yaml_file import parse_yaml
from common.errors import ConfigError, FedvoxError
from common.plan.plan import Plan
from server.run_store.damage import find_damage
from server.run_store.folder import RunFolder
from server.run_store.record import CaseScore, Example, Round, RunRecord, Site, SiteRound, as_number, as_scores

CONTRIBUTIONS_FILE = "contributions.json"
MOST_EVENT_BYTES = 256 * 1024
_MARKS_OF_A_RUN = ("federation.yaml", "rounds.jsonl", "summary.json")
# All errors that zipfile and NumPy raise for an archive that is damaged or made by other software.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, zlib.error)


_ROUND_NUMBERS = ("seconds", "bytes_up", "bytes_down", "mean_dice", "train_loss")
_SITE_NUMBERS = (
    "train_loss",
    "validation_loss",
    "mean_dice",
    "local_dice",
    "seconds",
    "seconds_data",
    "seconds_compute",
    "seconds_evaluate",
    "epsilon",
    "length",
    "scale",
    "cosine",
)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder as far as it has been written.

    Raises
    ------
    FedvoxError
        If the folder does not exist or is not the folder of a run.
    """
    run = _opened(folder)
    run.notes += find_damage(RunFolder(folder))
    _read_training(run)
    run.cases, names = _read_cases(run)
    run.labels = _collect_labels(run, names)
    run.examples = _read_examples(run)
    text = _read_text(run, CONTRIBUTIONS_FILE)
    run.contributions = _parse_mapping(run, CONTRIBUTIONS_FILE, text, json.loads)
    return run


def read_training(folder: Path) -> RunRecord:
    """Read a run folder as ``read_run`` does, without any case, without pictures, and without a check for damage.

    Of the events, only the last ``MOST_EVENT_BYTES`` are read: a site that comes and goes all day writes many.

    Raises
    ------
    FedvoxError
        If the folder does not exist or is not the folder of a run.
    """
    run = _opened(folder)
    _read_training(run, MOST_EVENT_BYTES)
    return run


def _opened(folder: Path) -> RunRecord:
    if not folder.is_dir():
        raise FedvoxError(f"{folder}: does not exist; give the folder of a run")
    if not any((folder / name).is_file() for name in _MARKS_OF_A_RUN):
        raise FedvoxError(
            f"{folder}: not the folder of a run (it has none of {', '.join(_MARKS_OF_A_RUN)}); "
            "give the folder that a simulation or a federation wrote"
        )
    return RunRecord(folder)


def _read_training(run: RunRecord, event_bytes: int | None = None) -> None:
    run.configuration_text = _read_text(run, "federation.yaml")
    run.configuration = _parse_mapping(run, "federation.yaml", run.configuration_text, _parse_yaml)
    run.summary = _parse_mapping(run, "summary.json", _read_text(run, "summary.json"), json.loads)
    run.plan = _read_plan(run)
    run.rounds = _read_rounds(run)
    run.sites = _read_sites(run)
    run.labels = _collect_labels(run, {})
    run.events = _read_lines(run, "events.jsonl", last_bytes=event_bytes)


def _read_text(run: RunRecord, name: str, last_bytes: int | None = None) -> str:
    """Return the text of a file, or of the last whole lines of it within so many bytes."""
    path = run.folder / name
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as stream:
            skipped = 0 if last_bytes is None else max(0, stream.seek(0, 2) - last_bytes)
            stream.seek(skipped)
            text = stream.read().decode("utf-8", "replace")
        return text.partition("\n")[2] if skipped else text
    except OSError as error:
        run.notes.append(f"{name} could not be read ({error.strerror}).")
        return ""


def _parse_yaml(text: str) -> Any:
    return parse_yaml(text, "federation.yaml")


def _parse_mapping(run: RunRecord, name: str, text: str, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    if not text.strip():
        return {}
    try:
        content = parse(text)
    except (ValueError, RecursionError, ConfigError):
        content = None
    if isinstance(content, dict):
        return content
    run.notes.append(f"{name} is invalid and was ignored.")
    return {}


def _read_lines(
    run: RunRecord, name: str, parse: Callable[[str], Any] = json.loads, last_bytes: int | None = None
) -> list[Any]:
    """Read the objects of a JSON-lines file. An interruption can truncate only a last line without a newline."""
    text = _read_text(run, name, last_bytes)
    lines = [line for line in text.split("\n") if line.strip()]
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            content = parse(line)
        except ValueError:
            content = None
        if isinstance(content, dict | Round):
            objects.append(content)
        elif number == len(lines) and not text.endswith("\n"):
            run.notes.append(f"The last line of {name} is incomplete: the run was interrupted while writing it.")
        else:
            run.notes.append(f"Line {number} of {name} is invalid and was ignored.")
    return objects


def _read_plan(run: RunRecord) -> Plan | None:
    text = _read_text(run, "plan.json")
    if not text:
        return None
    try:
        return Plan.model_validate_json(text)
    except ValidationError:
        run.notes.append("plan.json is invalid and was ignored.")
        return None


def _read_rounds(run: RunRecord) -> list[Round]:
    """Read the rounds in order; the last line counts for a round that was repeated after a resume."""
    rounds: dict[int, Round] = {}
    for line in _read_lines(run, "rounds.jsonl", _parse_round):
        if isinstance(line, Round):
            rounds[line.number] = line
        else:
            run.notes.append("A line of rounds.jsonl has no round number and was ignored.")
    return [rounds[number] for number in sorted(rounds)]


@lru_cache(maxsize=1024)
def _parse_round(text: str) -> Any:
    """Parse a line of ``rounds.jsonl``, once: whoever watches a run reads its file again after each round."""
    line = json.loads(text)
    number = as_number(line.get("round")) if isinstance(line, dict) else None
    return line if number is None else _round_from(int(number), line)


def _round_from(number: int, line: Mapping[str, Any]) -> Round:
    model_round = as_number(line.get("model_round"))
    sites = line.get("sites")
    return Round(
        number=number,
        phase=str(line.get("phase", "train")),
        model_round=number - 1 if model_round is None else int(model_round),
        dice=as_scores(line.get("dice")),
        sites={
            str(name): _site_round_from(site)
            for name, site in (sites.items() if isinstance(sites, dict) else ())
            if isinstance(site, dict)
        },
        **_numbers(line, _ROUND_NUMBERS),
    )


def _site_round_from(site: Mapping[str, Any]) -> SiteRound:
    reason = site.get("reason")
    return SiteRound(
        status=str(site.get("status", "ok")),
        reason=None if reason is None else str(reason),
        examples=_as_count(site.get("examples")),
        validation_examples=_as_count(site.get("validation_examples")),
        dice=as_scores(site.get("dice")),
        **_numbers(site, _SITE_NUMBERS),
    )


def _numbers(line: Mapping[str, Any], keys: Sequence[str]) -> dict[str, float | None]:
    return {key: as_number(line.get(key)) for key in keys}


def _as_count(value: object) -> int | None:
    number = as_number(value)
    return None if number is None else int(number)


def _read_sites(run: RunRecord) -> list[Site]:
    """Read the sites of the partition, then those known only from rounds (a federation has no partition)."""
    partition = _parse_mapping(run, "partition.json", _read_text(run, "partition.json"), json.loads)
    listed = partition.get("sites")
    sites: dict[str, Site] = {}
    for name, site in listed.items() if isinstance(listed, dict) else ():
        if isinstance(site, dict):
            train, validation = (site.get(key) for key in ("train", "validation"))
            sites[str(name)] = Site(
                name=str(name),
                train=len(train) if isinstance(train, list) else None,
                validation=len(validation) if isinstance(validation, list) else None,
                differs=str(site.get("differs") or ""),
            )
    for line in run.rounds:
        for name, part in line.sites.items():
            known = sites.setdefault(name, Site(name, None, None, ""))
            if known.train is None or known.validation is None:
                sites[name] = replace(
                    known,
                    train=part.examples if known.train is None else known.train,
                    validation=part.validation_examples if known.validation is None else known.validation,
                )
    return list(sites.values())


def _read_cases(run: RunRecord) -> tuple[list[CaseScore], dict[int, str]]:
    """Read the rows and the label names of ``validation.csv``."""
    cases: list[CaseScore] = []
    names: dict[int, str] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(_read_text(run, "validation.csv"), newline="")), start=2):
        label = row.get("label") or ""
        if not label.isdecimal() or not row.get("site") or not row.get("case"):
            run.notes.append(f"Line {number} of validation.csv is invalid and was ignored.")
            continue
        metrics: dict[str, float] = {}
        for column, text in row.items():
            if column in ("site", "case", "label", "label_name") or not isinstance(text, str):
                continue
            try:
                value = as_number(float(text))
            except ValueError:
                value = None
            if value is not None:
                metrics[column] = value
        cases.append(CaseScore(row["site"], row["case"], int(label), metrics))
        if row.get("label_name"):
            names[int(label)] = row["label_name"]
    return cases, names


def _collect_labels(run: RunRecord, names_in_cases: Mapping[int, str]) -> dict[int, str]:
    labels = dict(names_in_cases)
    if run.plan is not None:
        labels.update(run.plan.labels)
    stated = run.summary.get("labels")
    if isinstance(stated, dict):
        labels.update({int(key): str(name) for key, name in stated.items() if str(key).isdecimal()})
    for line in run.rounds:
        for label in line.dice:
            labels.setdefault(label, f"label {label}")
    return dict(sorted(labels.items()))


def _read_examples(run: RunRecord) -> list[Example]:
    examples: list[Example] = []
    for path in sorted((run.folder / "examples").glob("*.npz")):
        try:
            examples.append(_example_from(path))
        except _UNREADABLE as error:
            run.notes.append(f"examples/{path.name} could not be read ({type(error).__name__}) and was ignored.")
    return examples


def _example_from(path: Path) -> Example:
    with np.load(path, allow_pickle=False) as arrays:
        meta = json.loads(str(arrays["meta"].reshape(-1)[0]))
        image, truth, prediction = (arrays[name] for name in ("image", "truth", "prediction"))
        spacing = tuple(float(value) for value in arrays["spacing"])
    if image.ndim != 3 or image.shape != truth.shape or image.shape != prediction.shape or len(spacing) != 3:
        raise ValueError("arrays differ in shape")
    return Example(
        site=str(meta["site"]),
        case=str(meta["case"]),
        kind="best" if meta["kind"] == "best" else "worst",
        mean_dice=as_number(meta.get("mean_dice")),
        image=image.astype(np.float32),
        truth=truth.astype(np.uint8),
        prediction=prediction.astype(np.uint8),
        spacing=(spacing[0], spacing[1], spacing[2]),
    )
