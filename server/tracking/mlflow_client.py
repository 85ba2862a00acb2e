"""MLflow's REST API, as far as a run needs it.

MLflow's own client would cost ten seconds to import. Nothing that a server answers is shown but its status and its
error code, because a server may repeat what it was sent.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from common.errors import ConfigError, FedvoxError
from common.formatting import visible
from server.tracking.settings import MlflowServer

MOST_BYTES = 2**23
"""Largest answer that is read."""
_CODE = re.compile(r"[A-Z_]{1,64}")


class MlflowError(FedvoxError):
    """A tracking server did not do what it was asked.

    Attributes
    ----------
    code
        MLflow's error code; empty if there is none.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class MlflowClient:
    """Calls to one server; each ends with an answer or with an error.

    Parameters
    ----------
    server
        The server.
    seconds
        How long to wait for a connection, for the next bytes, and for a whole answer from its first byte on.

    Raises
    ------
    ConfigError
        The environment's proxy, certificates or token cannot be used.
    """

    def __init__(self, server: MlflowServer, seconds: float = 10.0) -> None:
        self._server, self._seconds = server, seconds
        auth = httpx.BasicAuth(server.user, server.password) if server.user and not server.token else None
        headers = {"Authorization": f"Bearer {server.token}"} if server.token else None
        try:
            self._http = httpx.Client(auth=auth, headers=headers, timeout=seconds, follow_redirects=False)
        except (OSError, ValueError, ImportError, httpx.InvalidURL):
            raise ConfigError(
                f"{server.url}: cannot be called with the proxy, SSL_CERT_FILE or MLFLOW_TRACKING_TOKEN of the "
                "environment; correct them"
            ) from None

    def call(self, method: str, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Call a method of ``api/2.0/mlflow`` and return its answer.

        Raises
        ------
        MlflowError
            The server is not there, too slow, or refuses, or is no MLflow server.
        """
        how = {"params": values} if method == "GET" else {"json": values}
        content = self._send(method, f"api/2.0/mlflow/{name}", name, **how)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise MlflowError(f"{self._server.url} is no MLflow server; correct the address")
        return answer

    def put_file(self, path: str, file: Path) -> None:
        """Store a file among the server's artefacts.

        Raises
        ------
        MlflowError
            As ``call``, or the file cannot be read.
        """
        name = f"api/2.0/mlflow-artifacts/artifacts/{quote(path)}"
        # The server answers once it has stored the file elsewhere.
        patience = httpx.Timeout(self._seconds, read=30 * self._seconds)
        try:
            with file.open("rb") as stream:
                self._send("PUT", name, file.name, content=stream, timeout=patience)
        except OSError as error:
            raise MlflowError(f"{file}: cannot be read: {error.strerror or error}") from None

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _send(self, method: str, path: str, name: str, **how: Any) -> bytes:
        url = self._server.url
        try:
            with self._http.stream(method, f"{url}/{path}", **how) as response:
                content = self._read(response)
        except httpx.TimeoutException:
            raise MlflowError(f"{url} does not answer within {self._seconds:g} s") from None
        except httpx.ConnectError as error:
            raise MlflowError(f"{url} cannot be reached ({visible(str(error))[:200]})") from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            # Its text may repeat a header, and so the token.
            raise MlflowError(
                f"{url} cannot be spoken with ({type(error).__name__}); is it an MLflow server?"
            ) from None
        if response.status_code != 200:
            raise self._refusal(response.status_code, content, name)
        return content

    def _read(self, response: httpx.Response) -> bytes:
        content, end = b"", time.monotonic() + self._seconds
        for part in response.iter_bytes():
            content += part
            if len(content) > MOST_BYTES or time.monotonic() > end:
                raise MlflowError(f"{self._server.url} sends an answer that does not end; correct the address")
        return content

    def _refusal(self, status: int, content: bytes, name: str) -> MlflowError:
        url = self._server.url
        if status in (401, 403):
            return MlflowError(
                f"{url} lets nobody in with this user and password, or under this host name (HTTP {status}); correct "
                "them, or the server's --allowed-hosts"
            )
        try:
            code = str(json.loads(content)["error_code"])
        except (ValueError, RecursionError, KeyError, TypeError):
            code = ""
        code = code if _CODE.fullmatch(code) else ""
        if not code and (status < 400 or status == 404):
            return MlflowError(f"{url} is no MLflow server (HTTP {status}); correct the address")
        return MlflowError(f"{url} does not take {visible(name)} (HTTP {status}{code and f', {code}'})", code)
