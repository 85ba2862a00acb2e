"""SuperLink's state as this project keeps it, opened by SuperLink and by the server app.

Pages of the database are large and nobody waits for the disk: every message goes through that file, and SQLite's usual
settings copy it in pages of 4 KiB and wait for the disk again and again. What has been written still survives the death
of every process; a machine that loses power may leave a damaged file, which is put aside at the next start. Nothing
hangs on it then: sites are registered anew at every start, and a federation goes on from its own run folder. The rest
is in ``server.object_files``, ``server.whole_replies``, ``server.lost_tasks`` and ``server.light_state``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.object_store import object_store_factory

from server.light_state import lighten
from server.lost_tasks import hand_out_again
from server.object_files import FileObjectStore, write_before_transactions
from server.whole_replies import hand_out_whole_replies

PAGE_BYTES = 65536
WAL_PAGES = 1024


def put_aside_if_damaged(database: Path) -> Path | None:
    """Renames a database that cannot be read.

    Returns:
        Where it is now; None if there is none or it is sound.
    """
    if not database.exists():
        return None
    try:
        connection = sqlite3.connect(database)
        try:
            if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                return None
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        pass
    aside = database.with_name(f"{database.name}.damaged")
    database.replace(aside)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    return aside


def change_state() -> None:
    """Changes Flower's classes in this process; once."""
    sql_mixin.SQLITE_PRAGMAS = _with_large_pages(sql_mixin.SQLITE_PRAGMAS)  # type: ignore[assignment,attr-defined]
    object_store_factory.SqlObjectStore = FileObjectStore  # type: ignore[attr-defined,assignment]
    hand_out_whole_replies(SqlLinkState)
    hand_out_again(SqlLinkState)
    write_before_transactions(SqlLinkState)
    lighten(SqlLinkState)


def open_state(database: Path) -> SqlLinkState:
    """The state of a SuperLink that runs, or ran, on this machine; after ``change_state``."""
    from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories

    manager = get_federation_manager(is_simulation=False)
    state = get_objectstore_linkstate_factories(str(database), manager)[1].state()
    return cast(SqlLinkState, state)


def _with_large_pages(pragmas: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    # The page size holds only if it is set before anything is written.
    ours = {"page_size": str(PAGE_BYTES)} | dict(pragmas)
    return tuple((ours | {"synchronous": "OFF", "wal_autocheckpoint": str(WAL_PAGES)}).items())
