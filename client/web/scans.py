"""The hospital's own validation patients: scan, truth and prediction, for people who may see them anyway.

A scan is named by its place in the list and never by a path. One at a time is kept, in a folder of its own, as long as
the page is served.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.web.checks import request_of
from client.web.jobs import Jobs, Work
from client.web.place import Place
from common.web.visits import Answer, Download, Notice, NotThereError, Page, Visit

VOLUMES = ("image", "truth", "prediction")


class ScanPages:
    """Lists the validation cases, and shows one of them.

    Parameters
    ----------
    folder
        For volumes; exists, and nobody else can read it.
    """

    def __init__(self, place: Place, jobs: Jobs, folder: Path) -> None:
        self._place = place
        self._jobs = jobs
        self._folder = folder / "scan"

    def listing(self, visit: Visit) -> Answer:
        """Show the list."""
        del visit
        data = None if self._place.data is None else str(self._place.data)
        return Page("scans.html.jinja", {"data": data, "work": self._jobs.last("cases"), "names": self._names()})

    def scan(self, visit: Visit) -> Answer:
        """Show one scan."""
        number, name = self._asked(visit)
        work = self._jobs.last("segment")
        shown = work if work is not None and work.request["case"] == name else None
        values = {"number": number, "name": name, "count": len(self._names()), "work": shown}
        return Page("scan.html.jinja", values, data_images=True)

    def volume(self, visit: Visit) -> Answer:
        """Give one of the volumes."""
        if visit.parameters["volume"] not in VOLUMES:
            raise NotThereError("no such volume")
        return self._file(visit, f"{visit.parameters['volume']}.nii.gz")

    def sheet(self, visit: Visit) -> Answer:
        """Give the picture of some slices."""
        return self._file(visit, "sheet.png")

    def find(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Begin to list the validation cases."""
        del visit, form
        self._jobs.start("cases", **request_of(self._place))
        return Notice("checks.begun")

    def segment(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Begin to segment one scan; the one before is removed."""
        del form
        _, name = self._asked(visit)
        request = request_of(self._place)
        self._jobs.require_free()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        self._jobs.start("segment", **request, case=name, folder=str(self._folder))
        return Notice("checks.begun")

    def _names(self) -> list[str]:
        work = self._jobs.last("cases")
        return [] if work is None or work.result is None else work.result

    def _asked(self, visit: Visit) -> tuple[int, str]:
        number, names = visit.parameters["number"], self._names()
        if not 0 <= number < len(names):
            raise NotThereError("no such scan")
        return number, names[number]

    def _file(self, visit: Visit, name: str) -> Answer:
        _, case = self._asked(visit)
        work, file = self._jobs.last("segment"), self._folder / name
        if not _is_of(work, case) or not file.is_file():
            raise NotThereError("no such file")
        return Download(file, name)


def _is_of(work: Work | None, case: str) -> bool:
    request: Mapping[str, Any] = {} if work is None or work.result is None else work.request
    return request.get("case") == case
