"""``GET`` and ``HEAD /models/SHA256``: the model weights of a site's open tasks."""

from __future__ import annotations

import re

from server.gateway.answers import Answer, FileRange
from server.gateway.refusals import RefusedError
from server.run_store.gateway_folder import GatewayFolder, OpenTask

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})")


class Downloads:
    """Selects the file and byte range that answer a request.

    Parameters
    ----------
    folder
        The gateway's folder.
    most_bytes
        The most bytes in one answer; clients request the rest separately.
    """

    def __init__(self, folder: GatewayFolder, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def head(self, site: str, digest: str) -> Answer:
        """Answer with the size of a model.

        Raises
        ------
        RefusedError
            No open task of the site uses the model. Does not reveal whether it exists.
        """
        task = self._task(site, digest)
        return Answer(200, {"content-length": str(task.size), "accept-ranges": "bytes"})

    def get(self, site: str, digest: str, wanted: str | None) -> Answer:
        """Answer with a model, or a range of it.

        Parameters
        ----------
        site
            The site that sent the request.
        digest
            The model's SHA-256.
        wanted
            The request's ``range`` header, ``bytes=A-B`` or ``bytes=A-``; None starts at the beginning.

        Raises
        ------
        RefusedError
            As for ``head``, or the range is malformed or starts past the end.
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
    """Return the first and last byte of a range."""
    if wanted is None:
        return 0, size - 1
    found = _RANGE.fullmatch(wanted)
    if found is None:
        raise RefusedError(400, "range")
    first, last = int(found[1]), int(found[2] or size - 1)
    if first >= size or last < first:
        raise RefusedError(416, "range", {"content-range": f"bytes */{size}"})
    return first, last
