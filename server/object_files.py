"""The large objects of SuperLink's database, each in a file of its own beside it.

A piece of a model that goes through SQLite is copied into its log, with a checksum per page, from there into the
database, and read back page by page, 4 ms per MiB; and as long as it is written nobody else may write. Here the
database keeps a mark, and the bytes are written and read once. Written for exactly one version of Flower
(``common.flower``).
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import StoredObject
from sqlalchemy import select

from common.parts import check_named
from server.app_lock import OBJECTS

LARGE = 65536
SWEEP_SECONDS = 2.0
# Files whose objects are gone are written over: fresh pages and blocks from the system take longer than the writing.
SPARE = ".spare"
MOST_SPARES = 24
# No object of Flower's begins like this: its first bytes are the name of its kind.
MARK = b"\0in a file"


class FileObjectStore(SqlObjectStore):
    """Flower's object store, with what is large in files.

    A file appears whole, before its mark, and goes some seconds after its object, or waits under another name to be
    written over. What a crash leaves behind is swept up. An object whose file is gone counts as unknown.

    Args:
        database_path: of the database; files go into the folder ``objects`` beside it.
    """

    def __init__(self, database_path: str) -> None:
        super().__init__(database_path, verify=False)
        self._folder = Path(database_path).with_name(OBJECTS)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._sweeping = threading.Lock()
        self._swept = float("-inf")
        self._staged = threading.local()

    def put(self, object_id: str, object_content: bytes) -> None:
        """Stores an object that was announced.

        Raises:
            ValueError: it is not the one with this name, or none of Flower's.
            NoObjectInStoreError: it was not announced.
            OSError: the file cannot be written.
        """
        staged = getattr(self._staged, "content", None) is object_content
        if not staged:
            check_named(object_id, object_content)
        if len(object_content) < LARGE:
            super().put(object_id, object_content)
            return
        if not staged:
            self._write(object_id, object_content)
        super().put(object_id, MARK)

    def stage(self, object_id: str, object_content: bytes, checked: bool = False) -> None:
        """Does before a transaction what takes long in ``put``; what looks wrong is left for ``put`` to refuse.

        Args:
            object_id, object_content: the object; if this very content is staged already there is nothing to do.
            checked: whether the caller has made the name from the content.
        """
        if getattr(self._staged, "content", None) is object_content:
            return
        self._staged.content = None
        if len(object_content) < LARGE or super().get(object_id) != b"":
            return
        try:
            if not checked:
                check_named(object_id, object_content)
            self._write(object_id, object_content)
        except (ValueError, OSError):
            return
        self._staged.content = object_content

    def unstage(self) -> None:
        """Lets go of what was staged."""
        self._staged.content = None

    def get(self, object_id: str) -> bytes | None:
        """An object; empty if it was announced and has not come, None if it is unknown."""
        content = super().get(object_id)
        if content != MARK:
            return content
        try:
            return (self._folder / object_id).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, object_id: str, content: bytes) -> None:
        self._sweep()
        half = self._folder / f"{object_id}.{os.getpid()}.{threading.get_ident()}"
        try:
            with half.open("r+b" if self._take_spare(half) else "wb") as file:
                file.write(content)
                file.truncate()
            half.replace(self._folder / object_id)
        except OSError:
            half.unlink(missing_ok=True)
            raise

    def _take_spare(self, name: Path) -> bool:
        """Gives a spare file another name; whether there was one."""
        for spare in self._folder.glob(f"*{SPARE}"):
            try:
                os.utime(spare)  # a sweep must not think that it was left behind
                spare.replace(name)
                return True
            except FileNotFoundError:
                continue  # another thread or process has taken it
        return False

    def _sweep(self) -> None:
        """Puts files without an object aside, now and then, and removes those that are too many."""
        if time.monotonic() - self._swept < SWEEP_SECONDS or not self._sweeping.acquire(blocking=False):
            return
        try:
            self._swept = time.monotonic()
            # As long as this transaction lasts nobody announces an object, whose file of old could be meant here.
            with self._mutation_session() as session:
                known = set(session.scalars(select(StoredObject.object_id)))
                spares = len(list(self._folder.glob(f"*{SPARE}")))
                for file in self._folder.iterdir():
                    if file.name in known or file.suffix == SPARE or _age(file) < SWEEP_SECONDS:
                        continue
                    if spares < MOST_SPARES:
                        file.replace(file.with_name(file.name + SPARE))
                        spares += 1
                    else:
                        file.unlink(missing_ok=True)
        except OSError:
            pass  # another process swept at the same time
        finally:
            self._sweeping.release()


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def write_before_transactions(state: type[SqlLinkState]) -> None:
    """Lets a state of Flower's write large objects before it begins the transaction in which it takes them."""
    store = state.store_object

    def store_staged(self: SqlLinkState, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        files = self.object_store
        if not isinstance(files, FileObjectStore):
            return store(self, run_id, session_id, object_id, object_content)
        files.stage(object_id, object_content)
        try:
            return store(self, run_id, session_id, object_id, object_content)
        finally:
            files.unstage()

    state.store_object = store_staged  # type: ignore[method-assign,assignment]
