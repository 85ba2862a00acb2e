"""HTTP requests that go where they are sent and nowhere else."""

from __future__ import annotations

import ssl
from typing import Protocol

import httpx

LARGEST_REFUSAL_BYTES = 200


class _Call(Protocol):
    """What Flower's clients hand to an interceptor."""

    @property
    def request(self) -> httpx.Request:
        """The prepared request."""


class DirectCalls:
    """Sends the calls of Flower's clients in their place, as an interceptor: those clients follow redirects anywhere.

    The environment names no proxy, certificate or password for them either.

    Parameters
    ----------
    context
        TLS; None for plain HTTP.
    proxy
        URL of the proxy, with its password; None for a direct connection.
    """

    def __init__(self, context: ssl.SSLContext | None = None, proxy: str | None = None) -> None:
        self._http = httpx.Client(
            verify=context if context is not None else False, proxy=proxy, trust_env=False, follow_redirects=False
        )

    def intercept(self, context: _Call, call_next: object) -> httpx.Response:
        """Return the response to a call, in place of Flower's client; of a refusal only the first bytes."""
        del call_next
        response = self._http.send(context.request, stream=True)
        try:
            if response.is_success:
                response.read()
                return response
            word = next(response.iter_raw(LARGEST_REFUSAL_BYTES), b"")
        finally:
            response.close()
        headers = {"location": response.headers["location"]} if response.has_redirect_location else {}
        return httpx.Response(response.status_code, headers=headers, content=word, request=response.request)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
