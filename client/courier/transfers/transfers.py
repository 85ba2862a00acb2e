"""Models down, updates up: in windows of at most ``WINDOW_BYTES``, resumed where they broke off.

Of a transfer nothing is held but one buffer, whatever the size of the file.
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
    """Carries files; may be used by several threads at once.

    Parameters
    ----------
    access
        to the gateway.
    pace
        how fast and when.
    retries
        how often.
    """

    def __init__(self, access: Access, pace: Pace, retries: Retries) -> None:
        self._access = access
        self._pace = pace
        self._retries = retries

    def download(self, digest: str, target: Path) -> None:
        """Fetches a model; ``target`` appears by rename, when its digest was found right.

        What has arrived of it waits in ``.DIGEST.part`` beside it, also for the next process.

        Raises
        ------
        RefusedError
            the server does not give it (any more).
        GivenUpError
            it came damaged, again and again.
        StoppedError
            the courier ends.
        """
        download = Download(self._access, self._pace, digest, target)
        try:
            self._retries.until_done(f"fetching model {digest[:12]}", download.attempt)
        finally:
            download.close()

    def upload(self, task: str, digest: str, file: VerifiedFile) -> None:
        """Sends an update, or the rest of it.

        Raises
        ------
        RefusedError
            the server does not take it (any more).
        GivenUpError
            the file was changed meanwhile.
        StoppedError
            the courier ends.
        """
        upload = Upload(self._access, self._pace, task, digest, file)
        self._retries.until_done(f"sending update {digest[:12]}", upload.attempt)

    def is_given(self, digest: str) -> bool:
        """Whether the server still gives a model; also true where it does not say.

        Raises
        ------
        StoppedError
            the courier ends.
        """
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
        """Whether the server has the whole of an update.

        Raises
        ------
        RefusedError
            it does not take one for this task (any more).
        StoppedError
            the courier ends.
        """

        def ask() -> bool:
            with self._access.connection() as connection:
                response = connection.request("HEAD", f"/updates/{task}/{digest}")
                connection.check(response, "asking for the update", 200)
                response.read()
                return is_complete(response)

        return self._retries.until_done("asking for the update", ask)
