"""``GET`` and ``HEAD /models/SHA256``: the weights that a site's open tasks name."""

from __future__ import annotations

import re

from server.gateway.answers import Answer, FileRange
from server.gateway.refusals import RefusedError
from server.run_store.gateway_folder import GatewayFolder, OpenTask

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class Downloads:
    """Says which bytes of which file a request gets.

    Parameters
    ----------
    folder
        of the gateway.
    most_bytes
        in one answer; a client asks again for the rest.
    """

    def __init__(self, folder: GatewayFolder, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def head(self, site: str, digest: str) -> Answer:
        """The size of a model.

        Raises
        ------
        RefusedError
            no open task of the site names it; whether it exists is not told.
        """
        task = self._task(site, digest)
        return Answer(200, {"content-length": str(task.size), "accept-ranges": "bytes"})

    def get(self, site: str, digest: str, wanted: str | None) -> Answer:
        """A model, or a part of it.

        Parameters
        ----------
        site
            who asks.
        digest
            the model's SHA-256.
        wanted
            the request's ``range``, ``bytes=A-B`` or ``bytes=A-``; None is from the beginning.

        Raises
        ------
        RefusedError
            as ``head``; the range cannot be read, or begins behind the end.
        """
        task = self._task(site, digest)
        first, last = _span(wanted, task.size)
        end = min(last + 1, task.size, first + self._most_bytes)
        headers = {"accept-ranges": "bytes", "content-type": "application/octet-stream"}
        if task.size == 0:
            return Answer(200, headers)
        content = FileRange(self._folder.run / task.file, task.offset + first, task.offset + end)
        if wanted is None and end == task.size:
            return Answer(200, headers, content)
        return Answer(206, headers | {"content-range": f"bytes {first}-{end - 1}/{task.size}"}, content)

    def _task(self, site: str, digest: str) -> OpenTask:
        for task in self._folder.open_tasks(site):
            if task.model == digest and self._is_there(task):
                return task
        raise RefusedError(404, "model")

    def _is_there(self, task: OpenTask) -> bool:
        try:
            return (self._folder.run / task.file).stat().st_size >= task.offset + task.size
        except OSError:
            return False


def _span(wanted: str | None, size: int) -> tuple[int, int]:
    """First and last byte that are asked for."""
    if wanted is None:
        return 0, size - 1
    found = _RANGE.fullmatch(wanted)
    if found is None:
        raise RefusedError(400, "range")
    first, last = int(found[1]), int(found[2] or size - 1)
    if first >= size or last < first:
        raise RefusedError(416, "range", {"content-range": f"bytes */{size}"})
    return first, last
