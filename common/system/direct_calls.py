"""HTTP requests that go where they are sent and nowhere else."""

from __future__ import annotations

import ssl

import httpx

LARGEST_REFUSAL_BYTES = 200


class DirectCalls:
    """Sends the calls of Flower's clients in their place: those follow redirects, to wherever they lead.

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

    def send(self, request: httpx.Request) -> httpx.Response:
        """Return the response to a request; of a refusal only the first bytes."""
        response = self._http.send(request, stream=True)
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
