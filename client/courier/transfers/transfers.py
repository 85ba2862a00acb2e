"""Resumable downloads of models and uploads of updates, in windows of at most ``WINDOW_BYTES``.

A transfer keeps one buffer in memory, whatever the size of the file.
"""

from __future__ import annotations

import http
from pathlib import Path

from client.courier.connection import Access
from client.courier.errors import LineError, RefusedError
from client.courier.retry import Retries
from client.courier.transfers.download import Download
from client.courier.transfers.pace import Pace
from client.courier.transfers.upload import Upload, VerifiedFile, is_complete


class Transfers:
    """Transfers files. Thread-safe.

    Parameters
    ----------
    access
        Access to the gateway.
    pace
        Rate limit and hours.
    retries
        Repeats failed attempts.
    """

    def __init__(self, access: Access, pace: Pace, retries: Retries) -> None:
        self._access = access
        self._pace = pace
        self._retries = retries

    def download(self, digest: str, target: Path) -> None:
        """Download a model; ``target`` appears by rename once its digest is verified.

        A partial download stays beside it in ``.DIGEST.part``, even for the next process.

        Raises
        ------
        RefusedError
            If the server does not, or no longer, offer it.
        GivenUpError
            If it repeatedly arrives damaged.
        StoppedError
            If the courier stops.
        """
        download = Download(self._access, self._pace, digest, target)
        try:
            self._retries.until_done(f"fetching model {digest[:12]}", download.attempt)
        finally:
            download.close()

    def upload(self, task: str, digest: str, file: VerifiedFile) -> None:
        """Upload an update, or the rest of it.

        Raises
        ------
        RefusedError
            If the server does not, or no longer, accept it.
        GivenUpError
            If the file changes during the upload.
        StoppedError
            If the courier stops.
        """
        upload = Upload(self._access, self._pace, task, digest, file)
        self._retries.until_done(f"sending update {digest[:12]}", upload.attempt)

    def is_given(self, digest: str) -> bool:
        """Return whether the server still offers a model; True if it does not say."""
        try:
            with self._access.connection() as connection:
                response = connection.request("HEAD", f"/models/{digest}")
                connection.check(response, "asking for the model", 200)
                response.read()
        except LineError:
            return True
        except RefusedError as error:
            return error.status != http.HTTPStatus.NOT_FOUND
        return True

    def is_there(self, task: str, digest: str) -> bool:
        """Return whether the server has the whole update.

        Raises
        ------
        RefusedError
            If it does not, or no longer, accept an update for this task.
        StoppedError
            If the courier stops.
        """

        def ask() -> bool:
            with self._access.connection() as connection:
                response = connection.request("HEAD", f"/updates/{task}/{digest}")
                connection.check(response, "asking for the update", 200)
                response.read()
                return is_complete(response)

        return self._retries.until_done("asking for the update", ask)
