"""What an archive holds and gives, however it is spoken to."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from client.pacs.address import is_uid
from client.pacs.peer import PeerError
from common.errors import DataError, OutputError
from common.imaging.io.dicom.elements import read_elements
from common.imaging.io.dicom.header import read_header, refused_as_damaged
from common.imaging.io.dicom.values import tag_of, text
from common.system.files import cannot_write

STUDY_FIELDS = ("StudyInstanceUID", "AccessionNumber", "StudyDate", "StudyDescription")
SERIES_FIELDS = ("SeriesInstanceUID", "Modality", "SeriesDescription", "BodyPartExamined")
INSTANCE_FIELDS = ("SOPInstanceUID", "SOPClassUID", "Rows", "Columns", "NumberOfFrames")
MOST_ANSWERS = 100_000
"""To one question: an archive that gives more did not understand it."""
LONGEST_VALUE = 80
"""Characters of a value in an answer that are looked at: more than any that is asked for may have."""
_USUAL_BYTES = 2**19

Answer = Mapping[str, str]
"""One answer of an archive: keyword -> text, shortened to nothing but what was asked for."""


@dataclass(frozen=True)
class Study:
    """A study of an archive: its UID, and what people know it by; these may be empty."""

    uid: str
    accession: str
    date: str
    description: str


@dataclass(frozen=True)
class Series:
    """A series of an archive: its UID, and what people know it by; these may be empty."""

    uid: str
    modality: str
    description: str
    body_part: str


@dataclass(frozen=True)
class Instance:
    """An instance of an archive: UID, SOP class (may be empty), and about how many bytes it has."""

    uid: str
    kind: str
    size: int


class Archive(Protocol):
    """A way to ask and to fetch.

    All methods raise ``PeerError`` if the archive cannot be reached or does not do what it is asked for.
    """

    def ask(self, level: str, keys: Mapping[str, str], fields: Sequence[str]) -> list[Answer]:
        """Return all answers to a question.

        Parameters
        ----------
        level
            ``STUDY``, ``SERIES`` or ``IMAGE``.
        keys
            Keyword -> value that must match, with the wildcards of DICOM. The archive may widen it: answers must be
            compared with what is wanted.
        fields
            Keywords to return.
        """

    def probe(self) -> None:
        """Ask whether it is there."""

    def fetch(self, study: str, series: Mapping[str, Sequence[Instance]], inbox: Inbox) -> None:
        """Fetch some series of a study; what arrives goes to the inbox, and may be more or less than was asked for."""


def find_studies(archive: Archive, questions: Iterable[Mapping[str, str]]) -> list[Study]:
    """Return the studies that an archive finds, for any of some questions, each once."""
    found = [answer for keys in questions for answer in archive.ask("STUDY", keys, STUDY_FIELDS)]
    answers = _valid(archive, "StudyInstanceUID", found)
    return [
        Study(uid, answer["AccessionNumber"], answer["StudyDate"], answer["StudyDescription"])
        for uid, answer in answers.items()
    ]


def find_series(archive: Archive, study: str) -> list[Series]:
    """Return all series of a study, each once."""
    answers = _valid(archive, "SeriesInstanceUID", archive.ask("SERIES", {"StudyInstanceUID": study}, SERIES_FIELDS))
    return [
        Series(
            uid,
            answer["Modality"],
            answer["SeriesDescription"],
            answer["BodyPartExamined"],
        )
        for uid, answer in answers.items()
    ]


def find_instances(archive: Archive, study: str, series: str) -> list[Instance]:
    """Return all instances of a series, each once."""
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    answers = _valid(archive, "SOPInstanceUID", archive.ask("IMAGE", keys, INSTANCE_FIELDS))
    return [Instance(uid, answer["SOPClassUID"], _size(answer)) for uid, answer in answers.items()]


def _valid(archive: Archive, key: str, answers: Sequence[Answer]) -> dict[str, Answer]:
    """Index answers by a UID.

    Raises
    ------
    PeerError
        One is none: it would become a part of a question or of a URL. A SOP class may be empty.
    """
    for answer in answers:
        for keyword in {key, "SOPClassUID"} & answer.keys():
            if not is_uid(answer[keyword]) and (answer[keyword] or keyword == key):
                raise PeerError(str(archive), f"answered with a {keyword} that is no UID", is_passing=False)
    return {answer[key]: answer for answer in answers}


def _number(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 9 else None


def _size(answer: Answer) -> int:
    rows, columns = _number(answer["Rows"]), _number(answer["Columns"])
    frames = _number(answer["NumberOfFrames"]) or 1
    return 2 * rows * columns * frames if rows and columns else frames * _USUAL_BYTES


class NoRoomError(OutputError):
    """The disk would be too full."""


class Inbox:
    """Takes the instances of one study, from several threads, and nothing else.

    Parameters
    ----------
    folder
        An empty folder. Files get numbers for names: nothing that an archive sends becomes one.
    study
        Its UID.
    expected
        Series UID -> UIDs of its instances.
    accession
        Accession number that was asked for: an instance may have none, but no other. Empty if none was.
    keep_free
        Bytes of the disk that are left free.

    Attributes
    ----------
    received
        UIDs of the instances that are in the folder.
    files
        Series UID -> its files.
    strangers
        What was sent and must not be taken: why -> how many instances.
    """

    def __init__(
        self,
        folder: Path,
        study: str,
        expected: Mapping[str, Sequence[str]],
        accession: str = "",
        keep_free: int = 0,
    ) -> None:
        self._folder = folder
        self._study = study
        self._accession = accession
        self._keep_free = keep_free
        self._series = {uid: series for series, uids in expected.items() for uid in uids}
        self.received: set[str] = set()
        self.files: dict[str, list[Path]] = {}
        self.strangers: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def expected(self) -> int:
        """How many instances there will be."""
        return len(self._series)

    def is_whole(self, series: Sequence[Instance]) -> bool:
        """Return whether all of these have been received."""
        return self.received.issuperset(one.uid for one in series)

    def keep(self, content: Iterable[bytes]) -> str:
        """Write a DICOM file, if it is one of those that are expected, and not there yet.

        Parameters
        ----------
        content
            The file, in pieces of any size; read to its end.

        Returns
        -------
        str
            Why it was not kept; empty if it is there now.

        Raises
        ------
        NoRoomError
            It would take of the disk what must stay free.
        OutputError
            It cannot be written.
        """
        path = self._folder / f"{next(self._numbers):06d}.dcm"
        try:
            with path.open("xb") as file:
                for piece in content:
                    self._require_room(len(piece))
                    file.write(piece)
            with self._lock:
                return self._judge(path)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise cannot_write(path, error) from None
            raise

    def _require_room(self, size: int) -> None:
        if shutil.disk_usage(self._folder).free < self._keep_free + size:
            raise NoRoomError(f"less than {self._keep_free:,} bytes would be free in {self._folder.parent}: free space")

    def _judge(self, path: Path) -> str:
        """Note that an instance is there, or remove it and say why."""
        try:
            head = read_header(path)
            accession = _accession_in(path) if self._accession else ""
        except DataError:
            head = None
        if head is None or head.study != self._study or self._series.get(head.uid) != head.series:
            return self._refuse(path, "that did not belong to what was asked for")
        if accession not in ("", self._accession):
            return self._refuse(path, "with another accession number than the one that was asked for")
        if head.uid in self.received:
            path.unlink()
        else:
            self.received.add(head.uid)
            self.files.setdefault(head.series, []).append(path)
        return ""

    def _refuse(self, path: Path, why: str) -> str:
        path.unlink()
        self.strangers[why] += 1
        return f"an instance {why}"


def _accession_in(path: Path) -> str:
    with refused_as_damaged(path), path.open("rb") as file:
        return text(read_elements(file, [tag_of("AccessionNumber")]), "AccessionNumber")
