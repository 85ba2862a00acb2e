"""Starts Flower's SuperLink for a federation: ``python -m server.superlink`` takes ``flower-superlink``'s options.

It differs in three things. Replies are handed out when they are whole (``server.whole_replies``). The body of a request
goes through SuperLink's layers at once, not in portions of 64 KiB, each of which costs as much as a request. And its
database: every piece of a model goes through that file, and SQLite's usual settings copy it in pages of 4 KiB and wait
for the disk again and again: 1.4 s for 96 MB instead of 0.4 s. Here pages are large and nobody waits. What has been
written still survives the death of every process; a machine that loses power may leave a damaged file, which is put
aside at the next start. Nothing hangs on it then: sites are registered anew at every start, and a federation goes on
from its own run folder.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from common.flower import check_flower_version

PAGE_BYTES = 65536
WAL_PAGES = 1024
LARGEST_WHOLE_BODY = 32 * 2**20


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


def _with_large_pages(pragmas: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    # The page size holds only if it is set before anything is written.
    ours = {"page_size": str(PAGE_BYTES)} | dict(pragmas)
    return tuple((ours | {"synchronous": "OFF", "wal_autocheckpoint": str(WAL_PAGES)}).items())


def receive_whole_bodies(protocol: ModuleType) -> None:
    """Lets uvicorn hand over the body of a request when all of it is there, if it is no larger than 32 MiB.

    Args:
        protocol: ``uvicorn.protocols.http.httptools_impl``.
    """
    protocol.HIGH_WATER_LIMIT = LARGEST_WHOLE_BODY  # type: ignore[attr-defined]
    receive = protocol.RequestResponseCycle.receive

    async def receive_whole(self: Any) -> Any:
        if self.more_body and not self.waiting_for_100_continue:
            while self.more_body and not self.disconnected and len(self.body) <= LARGEST_WHOLE_BODY:
                self.flow.resume_reading()
                self.message_event.clear()
                await self.message_event.wait()
            self.message_event.set()
        return await receive(self)

    protocol.RequestResponseCycle.receive = receive_whole


def main() -> None:
    """Runs Flower's SuperLink with the options on the command line.

    Raises:
        FlowerVersionError: another version of Flower is installed.
    """
    check_flower_version()
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.supercore import sql_mixin
    from flwr.superlink.cli import flower_superlink
    from uvicorn.protocols.http import httptools_impl

    from server.whole_replies import hand_out_whole_replies

    if "--database" in sys.argv[:-1]:
        aside = put_aside_if_damaged(Path(sys.argv[sys.argv.index("--database") + 1]))
        if aside is not None:
            sys.stderr.write(f"the database was damaged and is now {aside}; sites are registered anew\n")
    sql_mixin.SQLITE_PRAGMAS = _with_large_pages(sql_mixin.SQLITE_PRAGMAS)  # type: ignore[assignment,attr-defined]
    hand_out_whole_replies(SqlLinkState)
    receive_whole_bodies(httptools_impl)
    flower_superlink()


if __name__ == "__main__":
    main()
