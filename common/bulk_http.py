"""A way for Flower's clients to move pieces of a model at the speed of memory, not of a parser.

Flower's HTTP client is httpx, which takes a body apart in portions of 64 KiB, in Python: 15 ms of CPU time for a piece
of 8 MiB, against 2 ms with urllib3. Everything above the connection (requests, interceptors, repetitions, errors) stays
as it is, but for pieces, which protobuf does not copy (``common.large_objects``). A body is always read whole, so this
is for calls with one answer, not for streams.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, cast

import httpx
import urllib3
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.supercore.protobuf.client import ProtobufClient

from common.large_objects import PulledObject

CONNECTIONS = 8
LARGEST_ANSWER = 32 * 2**20
"""Bytes; a piece of a model has 16 MiB."""
# A compressed answer may become any size. And whose library we use, in which version, is nobody's business.
_OUR_HEADERS = {"accept-encoding": "identity", "user-agent": "fedvox"}
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    # First: to urllib3 it is a kind of ConnectTimeoutError.
    (urllib3.exceptions.NewConnectionError, httpx.ConnectError),
    (urllib3.exceptions.ConnectTimeoutError, httpx.ConnectTimeout),
    (urllib3.exceptions.ReadTimeoutError, httpx.ReadTimeout),
    (urllib3.exceptions.SSLError, httpx.ConnectError),
    (urllib3.exceptions.ProtocolError, httpx.RemoteProtocolError),
    (urllib3.exceptions.HTTPError, httpx.TransportError),
)


class BulkTransport(httpx.BaseTransport):
    """Sends requests with urllib3.

    Args:
        verify: how to know the server; None is for servers without TLS.
    """

    def __init__(self, verify: ssl.SSLContext | None) -> None:
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, ssl_context=verify, retries=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request and reads the whole answer.

        Raises:
            httpx.TransportError: there is none; with a certificate that is not accepted it says so.
            httpx.DecodingError: it is larger than any answer of ours, or may become so: it is compressed.
        """
        times = request.extensions.get("timeout", {})
        try:
            answer = self._pool.urlopen(
                request.method,
                str(request.url),
                body=cast(httpx.SyncByteStream, request.stream),
                headers=dict(request.headers) | _OUR_HEADERS,
                timeout=urllib3.Timeout(connect=times.get("connect"), read=times.get("read")),
                redirect=False,
                decode_content=False,
                preload_content=False,
            )
            content = _content(answer)
        except urllib3.exceptions.HTTPError as error:
            kind = next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))
            raise kind(str(error), request=request) from error
        if content is None:
            raise httpx.DecodingError("the answer is compressed, or too large", request=request)
        return httpx.Response(answer.status, headers=list(answer.headers.items()), content=content)

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        self._pool.clear()


def _content(answer: urllib3.BaseHTTPResponse) -> bytes | None:
    """The whole of an answer; None if nobody may want it."""
    length = answer.headers.get("content-length", "")
    known = int(length) if length.isdecimal() else 0
    if answer.headers.get("content-encoding", "identity") == "identity" and known <= LARGEST_ANSWER:
        # Of an answer without a length, one byte more shows that it is too large.
        content = answer.read() if known else answer.read(LARGEST_ANSWER + 1)
        if len(content) <= LARGEST_ANSWER:
            answer.release_conn()
            return content
    answer.close()
    return None


def use_bulk_transport(client: type[ProtobufClient] = ProtobufClient) -> None:
    """Changes a class of Flower's: clients that are made from now on use ``BulkTransport``."""
    begin: Callable[..., None] = client.__init__

    def begin_with_ours(self: Any, base_url: str, *arguments: Any, verify: Any = True, **options: Any) -> None:
        begin(self, base_url, *arguments, verify=verify, **options)
        speed_up(self, verify)

    client.__init__ = begin_with_ours  # type: ignore[method-assign]


def speed_up(client: ProtobufClient, verify: ssl.SSLContext | bool | str = True) -> None:
    """Gives one client of Flower's a ``BulkTransport``.

    Args:
        client: that was just made.
        verify: as httpx understands it.
    """
    former = client._client
    context = verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify) if verify else None
    client._client = httpx.Client(
        transport=BulkTransport(context), timeout=former.timeout, follow_redirects=former.follow_redirects
    )
    former.close()
    ask = client._unary_unary

    def ask_without_copying(*, response_type: type[Any], **others: Any) -> Any:
        return ask(response_type=PulledObject if response_type is PullObjectResponse else response_type, **others)

    client._unary_unary = ask_without_copying  # type: ignore[method-assign]
