"""How an instance that came gets onto the disk: identified by its own content, under a name that no peer chooses."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from client.pacs.address import is_uid
from client.pacs.receiver import MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, Arrival, NotStoredError
from common.errors import DataError
from common.imaging.io.dicom.header import read_header
from common.system.files import OWN_FILE, PRIVATE, write_atomically


@dataclass(frozen=True)
class Landed:
    """An instance on disk.

    Attributes
    ----------
    path
        The file, for the caller to rename.
    study, series, uid
        UIDs of study, series and instance: digits and dots, at most 64.
    """

    path: Path
    study: str
    series: str
    uid: str


def land(arrival: Arrival, folder: Path, keep_free: int = 0) -> Landed:
    """Write an instance to a new file in a folder, flushed to disk, and identify it.

    Parameters
    ----------
    arrival
        The instance.
    folder
        Where it is written, under a temporary name.
    keep_free
        Bytes of the disk that are left free.

    Raises
    ------
    NotStoredError
        It cannot be read, has no proper UIDs, or is another one than announced; or the disk is too full. Nothing is
        left of it.
    OutputError
        The file cannot be written.
    """
    if not is_uid(arrival.uid):
        raise NotStoredError(NOT_UNDERSTOOD, "the SOP instance UID is no UID")
    if shutil.disk_usage(folder).free < keep_free + len(arrival.content):
        raise NotStoredError(OUT_OF_RESOURCES, f"less than {keep_free:,} bytes of the disk would be free")
    path = folder / f"{secrets.token_hex(8)}.part"
    write_atomically(path, arrival.content, mode=PRIVATE, remedy=OWN_FILE)
    try:
        return _identified(arrival, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _identified(arrival: Arrival, path: Path) -> Landed:
    try:
        instance = read_header(path)
    except DataError as error:
        raise NotStoredError(NOT_UNDERSTOOD, error.problem) from None
    if instance is None:
        raise NotStoredError(NOT_UNDERSTOOD, "the instance has no series")
    if (instance.kind, instance.uid) != (arrival.kind, arrival.uid):
        raise NotStoredError(MISMATCH, "SOP class or instance UID are not those announced")
    for name, uid in (("study", instance.study), ("series", instance.series)):
        if not is_uid(uid):
            raise NotStoredError(NOT_UNDERSTOOD, f"the {name} instance UID is no UID")
    return Landed(path, instance.study, instance.series, instance.uid)
