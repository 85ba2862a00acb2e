"""Files for tests of de-identification, and what became of them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from client.deidentify.choices import Choices
from client.deidentify.identities import Identities
from client.deidentify.instance import Deidentified, Deidentifier
from tests.dicom_series import make_series, save

TABLE = Path(__file__).with_name("table_e1_1.csv")
"""Table E.1-1 of PS3.15 (2026c): tag, action of the Basic Profile, and what the three options that we claim say.

Private attributes, curves (50xx) and overlays (60xx) are not in it.
"""
IDENTITIES = "identities"


@dataclass(frozen=True)
class Row:
    """One row of the table; ``options`` has ``dates``, ``device`` and ``descriptors`` where they say something."""

    tag: BaseTag
    action: str
    options: dict[str, str]


def rows() -> list[Row]:
    with TABLE.open(encoding="utf-8") as file:
        return [
            Row(Tag(int(row["tag"], 16)), row["action"], dict(one.split(":") for one in row["options"].split()))
            for row in csv.DictReader(file)
        ]


def deidentifier(folder: Path, choices: Choices | None = None) -> Deidentifier:
    """With the secret of a folder, which is made with the first."""
    return Deidentifier(Identities(folder / IDENTITIES), choices or Choices())


def one_image(**values: object) -> Dataset:
    """An image of 16 x 16 pixels, with further elements by keyword."""
    one, *_ = make_series()
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return one


def deidentified(folder: Path, original: Dataset, choices: Choices | None = None) -> Deidentified:
    save(folder / "in", [original])
    return deidentifier(folder, choices).deidentify(folder / "in" / "000.dcm")


def read(content: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(content))


def elements(dataset: Dataset) -> Iterator[DataElement]:
    """All elements at any depth, those of the file meta information too."""
    for element in [*getattr(dataset, "file_meta", ()), *dataset]:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def outside_pixels(content: bytes) -> bytes:
    """The bytes of an uncompressed file without its pixels and new UIDs, whose digits are random; in lower case."""
    return re.sub(rb"2\.25\.\d+", b"", content.replace(read(content).PixelData, b"")).lower()


def described(found: Sequence[DataElement]) -> set[str]:
    return {element.keyword or str(element.tag) for element in found}
