"""Studies as they arrive at a node, and kills at every step of its state folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from client.node.folders import INSTANCES, NodeFolders, names_in
from client.node.studies import SeriesOutcome
from client.pacs.receiver import Arrival


class Killed(BaseException):
    """What stands for kill -9."""


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def arrival(one: Dataset) -> Arrival:
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = UID(one.SOPClassUID)
    one.file_meta.MediaStorageSOPInstanceUID = UID(one.SOPInstanceUID)
    content = BytesIO()
    one.save_as(content, enforce_file_format=True)
    return Arrival(one.SOPClassUID, one.SOPInstanceUID, "MODALITY", content.getvalue())


def instances_in(study: Path) -> set[str]:
    return {name.removesuffix(".dcm") for name in names_in(study / INSTANCES)}


def uids(series: Sequence[Dataset]) -> set[str]:
    return {one.SOPInstanceUID for one in series}


def put_waiting(folders: NodeFolders, study: str, *instances: str) -> Path:
    """A complete study whose instances are no images."""
    home = folders.waiting / study
    (home / INSTANCES).mkdir(parents=True)
    for uid in instances:
        (home / INSTANCES / f"{uid}.dcm").write_text(uid)
    return home


def one_result_each(instances: Path, results: Path) -> list[SeriesOutcome]:
    """A result whose UID follows from the instances, as that of a segmentation does."""
    name = "2." + sha256("".join(sorted(path.stem for path in instances.iterdir())).encode()).hexdigest()[:16]
    (results / f"{name}.dcm").write_text("a result")
    return [SeriesOutcome("series 1", "segmented")]


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Raise before the given change of a folder, counted from 0; yields the number of changes so far."""
    count = 0

    def counted(change: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal count
            if count == step:
                raise Killed
            count += 1
            return change(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "link", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield lambda: count
