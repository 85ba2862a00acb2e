"""Which studies, and which of their series, are wanted: ``cohort.yaml``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator

from client.pacs.archives.archive import Series, Study
from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.patterns import matches
from common.plan.base import Frozen
from common.plan.describe_errors import describe_validation_error

_LONGEST_ACCESSION = 16
_LONGEST_FILE = 2**26


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[ -\[\]-~]+$")]
"""Text in ASCII without backslash; ``*`` and ``?`` stand for any characters, as in DICOM."""
Modality = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{0,15}$")]


class Cohort(Frozen):
    """What is wanted; a study must fulfil everything that is given.

    Attributes
    ----------
    accession_numbers
        A CSV file with a column of accession numbers, beside ``cohort.yaml``.
    column
        Name of the column.
    first_date, last_date
        Of studies: 2024-01-31.
    study_description
        Of studies.
    modality, series_description, body_part
        Of series; only these series are fetched.
    """

    accession_numbers: str | None = None
    column: str = "accession_number"
    first_date: date | None = None
    last_date: date | None = None
    study_description: Pattern | None = None
    modality: Annotated[tuple[Modality, ...], BeforeValidator(_as_list), Field(max_length=10)] = ()
    series_description: Pattern | None = None
    body_part: Pattern | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not (self.accession_numbers or any(self.questions())):
            raise ValueError(
                "would ask for the whole archive: give accession_numbers, first_date, last_date, study_description or "
                "modality"
            )
        if self.first_date and self.last_date and self.first_date > self.last_date:
            raise ValueError("first_date is after last_date")
        return self

    def questions(self) -> list[dict[str, str]]:
        """Return what to ask an archive for studies, without accession numbers: keyword -> value.

        One question for each modality: not all archives understand several values.
        """
        keys = {}
        if self.first_date or self.last_date:
            keys["StudyDate"] = "-".join(f"{day:%Y%m%d}" if day else "" for day in (self.first_date, self.last_date))
        if self.study_description:
            keys["StudyDescription"] = self.study_description
        return [{**keys, "ModalitiesInStudy": modality} for modality in self.modality] or [keys]

    def wants_study(self, study: Study) -> bool:
        """Return whether an answer is what was asked for: archives ignore keys that they do not support."""
        if (self.first_date or self.last_date) and not self._in_time(study.date):
            return False
        return _fits(self.study_description, study.description)

    def _in_time(self, day: str) -> bool:
        first, last = ("" if one is None else f"{one:%Y%m%d}" for one in (self.first_date, self.last_date))
        return re.fullmatch("[0-9]{8}", day) is not None and first <= day and (not last or day <= last)

    def wants_series(self, series: Series) -> bool:
        """Return whether a series is to be fetched."""
        return (
            (not self.modality or series.modality in self.modality)
            and _fits(self.series_description, series.description)
            and _fits(self.body_part, series.body_part)
        )


def load_cohort(path: Path) -> Cohort:
    """Read ``cohort.yaml``.

    Raises
    ------
    ConfigError
        The file is missing or is no YAML, or a key or value is wrong.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    try:
        return Cohort.model_validate({} if content is None else content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, Cohort, str(path))) from None


def read_accessions(path: Path, column: str) -> tuple[str, ...]:
    """Read a column of accession numbers: each once, in the order of the file, without spaces around them.

    Raises
    ------
    ConfigError
        The file cannot be read, has no such column, or has none.
    """
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise ConfigError(f"{path}: is larger than {_LONGEST_FILE:,} bytes; divide it")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            found = tuple(dict.fromkeys(_cells(path, stream.read().splitlines(keepends=True), column)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV: {error}") from None
    if not found:
        raise ConfigError(f"{path}: column {column} is empty; write one accession number a line")
    return found


def _cells(path: Path, lines: list[str], column: str) -> Iterator[str]:
    head = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=";" if ";" in head and "," not in head else ",")
    names = reader.fieldnames or []
    if column not in names:
        raise ConfigError(f"{path}: has no column {column}; its columns are {', '.join(names) or 'none'}")
    for row in reader:
        if cell := (row[column] or "").strip(" "):
            yield cell


def why_not_askable(accession: str) -> str:
    """Return why an archive cannot be asked for exactly this accession number; empty if it can."""
    if set(accession) & {"*", "?"}:
        return "holds * or ?, for which an archive would look as for any characters"
    if "\\" in accession:
        return "holds a backslash, which stands between two values"
    if not (accession.isascii() and accession.isprintable()):
        return "holds a character that is no plain letter, digit or sign"
    if len(accession) > _LONGEST_ACCESSION:
        return f"is longer than the {_LONGEST_ACCESSION} characters that DICOM allows"
    return ""


def _fits(pattern: str | None, value: str) -> bool:
    return pattern is None or matches(pattern.strip().casefold(), value.strip().casefold())
