"""From single instances to complete studies."""

from __future__ import annotations

import filecmp
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from weakref import WeakKeyDictionary

from client.node.folders import INSTANCES, NodeFolders, move, names_in, studies_in
from client.pacs.landing import Landed, land
from client.pacs.receiver import NOT_UNDERSTOOD, OTHER_KIND, OUT_OF_RESOURCES, Arrival, Line, NotStoredError
from common.errors import DataError
from common.formatting import counted, visible
from common.imaging.io.dicom.header import read_header
from common.imaging.io.dicom.pixel_form import IMAGE_KINDS
from common.system.files import cannot_write, flush_folder

log = logging.getLogger("fedvox.node")

_PAUSE_SECONDS = 30.0


class Incoming:
    """Takes instances, from several threads at once, and queues studies that are complete.

    Parameters
    ----------
    folders
        The state folder.
    settle_seconds
        A study is complete when nothing came for so long.
    most_waiting
        Studies that may come and wait; another one is refused.
    keep_free
        Bytes of the disk that are left free.
    clock
        Seconds, from any time on.
    """

    def __init__(
        self,
        folders: NodeFolders,
        settle_seconds: float,
        most_waiting: int,
        keep_free: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = folders
        self._settle_seconds = settle_seconds
        self._most_waiting = most_waiting
        self._keep_free = keep_free
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._again: dict[str, float] = {}
        self._lines: WeakKeyDictionary[Line, str] = WeakKeyDictionary()

    def keep(self, arrival: Arrival) -> None:
        """Put an instance on disk; it survives whatever happens once this returns.

        Raises
        ------
        NotStoredError
            It is no image that is read here, the queue is full, or ``land`` refuses it.
        OutputError
            It cannot be written.
        """
        if arrival.kind not in IMAGE_KINDS:
            raise NotStoredError(OTHER_KIND, "only CT, MR and PET images are taken")
        landed = land(arrival, self._folders.receiving, self._keep_free)
        try:
            if arrival.line is not None:
                with self._lock:
                    self._lines[arrival.line] = landed.study
            if not self._is_known(landed):
                self._place(landed, arrival.peer)
        except OSError as error:
            raise cannot_write(self._folders.incoming, error) from None
        finally:
            landed.path.unlink(missing_ok=True)

    def settle(self) -> list[str]:
        """Move on all studies that are complete, and return them."""
        settled = []
        for study in studies_in(self._folders.incoming):
            with self._lock:
                quiet = self._clock() - self._heard(study)
                # A study that is being segmented is left alone; what came since then follows it.
                if quiet < self._settle_seconds or (self._folders.waiting / study).exists():
                    continue
                if self._clock() < self._again.get(study, -inf):
                    continue
                try:
                    self._queue(study)
                except OSError as error:  # a full disk: tried again, and no reason to hold up others
                    if study not in self._again:
                        log.error("study %s cannot be moved on yet: %s", study, error.strerror or error)
                    self._again[study] = self._clock() + _PAUSE_SECONDS
                else:
                    self._again.pop(study, None)
                    settled.append(study)
        return settled

    def _heard(self, study: str) -> float:
        """Return when the last part of an instance came from where the last instance of the study came from."""
        last = self._last.setdefault(study, self._clock())
        return max([last, *(line.heard for line, current in self._lines.items() if current == study)])

    def _require_one_series(self, landed: Landed) -> None:
        """Refuse an instance whose UID another series of the study has: one would take the place of the other."""
        folders = self._folders
        for home in (folders.incoming, folders.waiting, folders.done, folders.set_aside):
            path = home / landed.study / INSTANCES / f"{landed.uid}.dcm"
            with suppress(DataError):  # what went bad on disk may be replaced
                known = read_header(path) if path.exists() else None
                if known is not None and known.series != landed.series:
                    raise NotStoredError(NOT_UNDERSTOOD, "another series of the study has this SOP instance UID")

    def _is_known(self, landed: Landed) -> bool:
        """Return whether a study that was taken has this instance already, byte for byte."""
        for home in (self._folders.waiting, self._folders.done):
            known = home / landed.study / INSTANCES / f"{landed.uid}.dcm"
            try:
                if filecmp.cmp(known, landed.path, shallow=False):
                    return True
            except OSError:
                continue
        return False

    def _place(self, landed: Landed, peer: str) -> None:
        study = self._folders.incoming / landed.study
        folder = study / INSTANCES
        with self._lock:
            self._require_one_series(landed)
            if is_new := not folder.exists():
                waiting = len(studies_in(self._folders.incoming)) + len(studies_in(self._folders.waiting))
                if waiting >= self._most_waiting:
                    raise NotStoredError(OUT_OF_RESOURCES, f"{counted(waiting, 'study', 'studies')} are waiting")
                folder.mkdir(parents=True)
            landed.path.rename(folder / f"{landed.uid}.dcm")
            self._last[landed.study] = self._clock()
            # Opened under the lock: the study may move on before it is flushed.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if is_new:
                flush_folder(study)
                flush_folder(self._folders.incoming)
                log.info("study %s comes from %s", landed.study, visible(peer))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _queue(self, study: str) -> None:
        """Move a study on, together with those of its instances that came before and were not replaced."""
        new = self._folders.incoming / study
        if not names_in(new / INSTANCES):  # a process was killed before the first was there
            self._folders.discard(new)
            return
        for home in (self._folders.done, self._folders.set_aside):
            if not (home / study).exists():
                continue
            for name in names_in(home / study / INSTANCES):
                if not (new / INSTANCES / name).exists():
                    os.link(home / study / INSTANCES / name, new / INSTANCES / name)
            flush_folder(new / INSTANCES)
            self._folders.discard(home / study)
        move(new, self._folders.waiting / study)
        self._last.pop(study, None)
        count = len(names_in(self._folders.waiting / study / INSTANCES))
        log.info("study %s is complete: %s", study, counted(count, "instance"))
