"""The data check and preflight: started from the page, and shown with pictures of odd cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.state_folder import StateFolder
from client.web.jobs import Jobs
from client.web.place import Place
from common.errors import ConfigError
from common.web.visits import Answer, Download, Notice, NotThereError, Page, Visit

MOST_ROWS = 300


def request_of(place: Place) -> dict[str, Any]:
    """Return what every child process is told.

    Raises
    ------
    ConfigError
        There is no dataset folder.
    """
    if place.data is None:
        raise ConfigError("there is no dataset folder: start the page with --data DIR")
    paths = {"kit": place.kit, "state": place.state, "ledger": place.ledger, "data": place.data}
    cache = str(place.cache) if place.cache else ""
    return {name: str(path) for name, path in paths.items()} | {"cache": cache, "device": place.device}


class CheckPages:
    """Shows what the last check and the last preflight found.

    Parameters
    ----------
    folder
        For pictures; exists, and nobody else can read it.
    """

    def __init__(self, place: Place, jobs: Jobs, folder: Path) -> None:
        self._place = place
        self._jobs = jobs
        self._folder = folder

    def page(self, visit: Visit) -> Answer:
        """Show both."""
        del visit
        check, found = self._jobs.last("check"), self._jobs.last("preflight")
        report = check.result if check is not None else None
        values = {
            "data": None if self._place.data is None else str(self._place.data),
            "check": check,
            "preflight": found,
            "report": report,
            "series": [
                (number, one)
                for number, study in enumerate(report["studies"] if report else [], 1)
                for one in study["series"]
            ][:MOST_ROWS],
            "problems": _worst_first(report["problems"])[:MOST_ROWS] if report else [],
            "cases": report["cases"][:MOST_ROWS] if report else [],
        }
        return Page("checks.html.jinja", values)

    def picture(self, visit: Visit) -> Answer:
        """Give the picture of an odd case, by its number."""
        check = self._jobs.last("check")
        numbers = [item["number"] for item in check.result["pictures"]] if check is not None and check.result else []
        if visit.parameters["number"] not in numbers:
            raise NotThereError("no such picture")
        return Download(self._folder / f"{visit.parameters['number']}.png", "slice.png")

    def check(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Begin a check of the data."""
        del visit, form
        self._jobs.start("check", **request_of(self._place), folder=str(self._folder))
        return Notice("checks.begun")

    def preflight(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Begin preflight."""
        del visit, form
        if StateFolder(self._place.state).is_locked():
            raise ConfigError("this site is running, and its preflight was done when it started")
        self._jobs.start("preflight", **request_of(self._place))
        return Notice("checks.begun")


def _worst_first(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(problems, key=lambda problem: str(problem["severity"]))
