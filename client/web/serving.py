"""Serves a site's page, one at a time on each state folder."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from client.state_folder import StateFolder
from client.web.jobs import Jobs
from client.web.place import Place
from client.web.side import hospital_side
from common.config.kit import read_kit
from common.errors import FedvoxError
from common.system.files import cannot_write
from common.system.ownership import owned
from common.web.listening import Listening
from common.web.serve import served, wait_for

LOCK_FILE = "page.lock"
FOLDER = "page"


class PageOpenError(FedvoxError):
    """Another process serves this site's page."""


@contextlib.contextmanager
def page_of(place: Place, listening: Listening, say: Callable[[str], None]) -> Iterator[threading.Thread]:
    """Serve a site's page in a thread, which the block gets, until the block ends.

    Parameters
    ----------
    say
        Called with the links for signing in.

    Raises
    ------
    PageOpenError
        Another process serves it.
    ConfigError
        The kit is none of a site, or the TLS files cannot be used.
    OutputError
        The state folder cannot be written, or the address cannot be listened on.
    """

    def taken(owner: str) -> PageOpenError:
        return PageOpenError(
            f"{place.state}: this site's page is open already ({owner}); use that one: whoever has signed in there "
            "can make links for others"
        )

    read_kit(place.kit, "site")  # no state folder for a kit that is none
    with (
        owned(place.state, LOCK_FILE, taken, mode=0o700),
        _folder_of_its_own(place) as folder,
        _jobs(place) as jobs,
        served(hospital_side(place, jobs, folder), listening, say) as thread,
    ):
        yield thread


@contextlib.contextmanager
def page_beside(place: Place, listening: Listening, say: Callable[[str], None]) -> Iterator[None]:
    """Serve a site's page as long as the block runs, or say why there is none: no round waits for a page."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(page_of(place, listening, say))
        except FedvoxError as error:
            say(f"no page: {error}")
        yield


@contextlib.contextmanager
def _folder_of_its_own(place: Place) -> Iterator[Path]:
    """Yield an empty folder in the state folder, which goes with the page, or with the next one."""
    folder = place.state / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _jobs(place: Place) -> Iterator[Jobs]:
    StateFolder(place.state).make()
    jobs = Jobs(StateFolder(place.state).logs / "page.log")
    try:
        yield jobs
    finally:
        jobs.stop()


def serve_page(place: Place, listening: Listening, say: Callable[[str], None]) -> None:
    """Serve a site's page until the process is interrupted; as ``page_of``."""
    with page_of(place, listening, say) as page:
        wait_for(page)
