"""What every request passes before anything else, and the headers of every answer.

A page on this machine can be reached by every page that its browser has open. So the name in Host must be ours
(DNS rebinding), what changes something must come from our own pages, and nothing of ours is shown inside another page.
"""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 16_384
LONGEST_PATH = 500
METHODS = "GET, HEAD, POST"
POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect", "font", "worker")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
POLICY_HEADER = "Content-Security-Policy"
POLICY_WITH_DATA_IMAGES = POLICY.replace("img-src 'self'", "img-src 'self' data:")
"""For pages whose scripts make pictures of their own."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Passes requests on to the application that it guards, or refuses them.

    Parameters
    ----------
    app
        The application.
    hosts
        What Host may say, in lower case: ``127.0.0.1:8750``.
    scheme
        ``http`` or ``https``.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], scheme: str) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(f"{scheme}://{host}" for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault(POLICY_HEADER, POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, path: str, headers: Headers) -> PlainTextResponse | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, "this name is not one of this page's")
        if method not in METHODS.split(", "):
            return _refused(HTTPStatus.METHOD_NOT_ALLOWED, f"only {METHODS}", Allow=METHODS)
        if len(path) > LONGEST_PATH:
            return _refused(HTTPStatus.REQUEST_URI_TOO_LONG, f"a path of more than {LONGEST_PATH} characters")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 10 or int(length) > MOST_BODY_BYTES:
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BODY_BYTES} bytes")
        if method == "POST" and not self._is_ours(headers):
            return _refused(HTTPStatus.FORBIDDEN, "this request does not come from this page")
        return None

    def _is_ours(self, headers: Headers) -> bool:
        """Return whether a request was sent by one of our own pages.

        With ``Referrer-Policy: no-referrer``, browsers send a form with ``Origin: null``; then Sec-Fetch-Site tells.
        """
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site")
        if len(origins) > 1 or site not in (None, "same-origin"):
            return False
        if origins and origins[0] != "null":
            return origins[0].lower() in self._origins
        return site == "same-origin"


def _refused(status: HTTPStatus, why: str, **headers: str) -> PlainTextResponse:
    return PlainTextResponse(f"{status} {status.phrase}: {why}\n", status, headers)
