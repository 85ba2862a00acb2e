"""The application that serves one side's pages: who is asking, in which language, and what comes back.

A side gives its pages and actions (``common.web.visits.Side``) and gets everything else: sign-in, forms with a secret
of the session, the audit entry before every action, languages, news to open pages, styles and scripts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import FedvoxError
from common.web.assets import Assets
from common.web.forms import CSRF_FIELD, read_form
from common.web.guard import POLICY_HEADER, POLICY_WITH_DATA_IMAGES, Guard
from common.web.openid import BEGIN, CALLBACK, OpenId, OpenIdError
from common.web.rendering import STATIC, TEMPLATES, Renderer, shown_in_json
from common.web.sessions import LINK_SECONDS, Sessions
from common.web.streams import News, Streams
from common.web.texts import LANGUAGES, Texts, choose_language, load_texts
from common.web.visits import (
    Action,
    Answer,
    Data,
    Download,
    GoTo,
    Notice,
    NotThereError,
    Page,
    Role,
    Session,
    Side,
    View,
    Visit,
)

SIGN_IN = "/sign-in"
_LANGUAGE_COOKIE = "fedvox-language"
_LONGEST_TOKEN = 200
WRONG_SECONDS = 1.0
"""How long the answer to a wrong token takes."""
NOTE_SECONDS = 60.0
"""Between two lines in the log on refused sign-ins."""
_MOST_AT_PROVIDER = 4
"""Requests that wait for the provider at a time: few of the threads, for who sends them has not signed in."""
_logger = logging.getLogger("fedvox.web")
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where a page is reached.

    Attributes
    ----------
    hosts
        What Host may say; the first is the one for links.
    """

    hosts: tuple[str, ...]
    port: int
    has_tls: bool = False

    @property
    def url(self) -> str:
        """The address of the first page, without a path."""
        return f"{'https' if self.has_tls else 'http'}://{self.hosts[0]}"

    @property
    def cookie(self) -> str:
        """The name of the session's cookie: cookies do not know ports, so each port has a name of its own."""
        return f"{'__Host-' if self.has_tls else ''}fedvox-{self.port}"


class Shell:
    """Serves one side's pages at one address.

    Attributes
    ----------
    app
        The application, for an ASGI server.
    address
        Where it is reached.
    sessions
        Who has signed in.
    openid
        The provider through which people may sign in too, if there is one.
    """

    def __init__(
        self,
        side: Side,
        address: Address,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._side = side
        self._clock, self._pause = clock, pause
        self._refusals, self._next_note = 0, clock()
        self.address = address
        self.sessions = sessions or Sessions()
        self.openid: OpenId | None = None
        self._asks_provider = asyncio.Semaphore(_MOST_AT_PROVIDER)
        self._texts = load_texts([TEMPLATES.parent / "texts", side.folder / "texts"])
        assets = Assets([STATIC, side.folder / "static"])
        self._render = Renderer(side.folder, assets.url)
        self._news = News(side.watch)
        self._streams = Streams(self._news, self.sessions)
        routes = [
            Route("/static/{name}", assets.answer),
            Route(SIGN_IN, self._sign_in_page, methods=["GET"]),
            Route(SIGN_IN, self._sign_in, methods=["POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
            Route(BEGIN, self._to_provider, methods=["GET"]),
            Route(CALLBACK, self._from_provider, methods=["GET"]),
            Route("/events", _Stream(self), methods=["GET"]),
            Route(
                "/links", self._endpoint_of_action(Action("sign_in_link", self._new_link, ("role",))), methods=["POST"]
            ),
        ]
        routes += [Route(path, self._endpoint_of_page(view), methods=["GET"]) for path, view in side.pages.items()]
        routes += [Route(path, self._endpoint_of_action(act), methods=["POST"]) for path, act in side.actions.items()]
        handlers: Any = {HTTPException: self._refused, Exception: self._failed}
        self.app: ASGIApp = Guard(
            Starlette(routes=routes, exception_handlers=handlers), address.hosts, address.url.split(":")[0]
        )

    def link(self, role: Role, made_by: str = "") -> str:
        """Return a link that signs in one person, once."""
        return f"{self.address.url}{SIGN_IN}?token={self.sessions.new_link(role, made_by)}"

    # Pages and actions of the side

    def _endpoint_of_page(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return self._to_sign_in(request)
            visit = self._visit(request, session)
            seen = self._news.now
            try:
                answer = await run_in_threadpool(view, visit)
            except NotThereError:
                raise HTTPException(HTTPStatus.NOT_FOUND) from None
            except FedvoxError as error:
                problem = Page("problem.html.jinja", {"text": str(error)})
                return self._shown(request, visit, problem, seen, HTTPStatus.SERVICE_UNAVAILABLE)
            return self._answered(request, visit, answer, seen)

        return answer

    def _endpoint_of_action(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            session = self._session(request)
            if session is None:
                return self._to_sign_in(request)
            form = await read_form(request, (*action.fields, CSRF_FIELD))
            if session.role is not Role.ACT or not session.forms.is_ours(form[CSRF_FIELD]):
                raise HTTPException(HTTPStatus.FORBIDDEN)
            if session.forms.take(form[CSRF_FIELD]):
                session.notice = await run_in_threadpool(self._act, action, self._visit(request, session), form)
            elif session.notice is None:
                session.notice = Notice("shell.sent_before", wrong=True)
            return _to(request.url.path.rpartition("/")[0] or "/")

        return answer

    def _act(self, action: Action, visit: Visit, form: Mapping[str, str]) -> Notice:
        """Write the audit entry, then do it; both or none, unless the action itself fails."""
        given = {name: form[name] for name in action.fields}
        details = {"who": visit.session.who, "action": action.name, "about": dict(visit.parameters) | given}
        try:
            self._side.audit(visit, "page_action", details)
            try:
                return action.act(visit, given)
            except FedvoxError as error:
                self._side.audit(visit, "page_action_failed", details | {"why": str(error)})
                raise
        except NotThereError:
            raise HTTPException(HTTPStatus.NOT_FOUND) from None
        except FedvoxError as error:
            return Notice("shell.not_done", {"why": str(error)}, wrong=True)

    def _new_link(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        role = Role.ACT if form["role"] == Role.ACT else Role.LOOK
        values = {"link": self.link(role, visit.session.who), "minutes": round(LINK_SECONDS / 60)}
        return Notice(f"shell.new_link_{role}", values)

    # Signing in and out

    async def _sign_in_page(self, request: Request) -> Response:
        """Show the form with the link's token: no browser that only looks ahead at a link uses it up."""
        token = request.query_params.get("token", "")[:_LONGEST_TOKEN]
        return self._sign_in_form(request, token, "")

    async def _sign_in(self, request: Request) -> Response:
        form = await read_form(request, ("token",))
        token = form["token"].strip()[-_LONGEST_TOKEN:].rpartition("token=")[2]
        address = request.client.host if request.client else ""
        secret = self.sessions.sign_in(token, address)
        if secret is None:
            self._note_refusal(f"a wrong token from {address}")
            # Whoever guesses is slowed, and nobody with a right token is kept out by it.
            await self._pause(WRONG_SECONDS)
            return self._sign_in_form(request, "", "sign_in.wrong", HTTPStatus.FORBIDDEN)
        return await self._signed_in(request, _to("/"), secret)

    async def _signed_in(self, request: Request, response: Response, secret: str) -> Response:
        session = self.sessions.find(secret)
        if session is not None:
            await run_in_threadpool(self._note_sign_in, self._visit(request, session))
        tls = self.address.has_tls
        response.set_cookie(self.address.cookie, secret, path="/", secure=tls, httponly=True, samesite="strict")
        return response

    def _note_sign_in(self, visit: Visit) -> None:
        try:
            self._side.audit(visit, "page_sign_in", {"who": visit.session.who, "role": str(visit.session.role)})
        except FedvoxError as error:
            # They are let in all the same: the page says what is wrong with the log, and stops the site without it.
            _logger.warning("the sign-in of %s is not in the audit log: %s", visit.session.who, error)

    async def _to_provider(self, request: Request) -> Response:
        if self.openid is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            address, secret = await self._from_openid(self.openid.begin, self._callback)
        except OpenIdError as error:
            return self._not_signed_in(request, error)
        response = _to(address)
        # Lax: the provider sends the browser back from another site.
        tls = self.address.has_tls
        response.set_cookie(self._openid_cookie, secret, path="/", secure=tls, httponly=True, samesite="lax")
        return response

    async def _from_provider(self, request: Request) -> Response:
        if self.openid is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        secret = request.cookies.get(self._openid_cookie, "")
        try:
            query = dict(request.query_params)
            role, who = await self._from_openid(self.openid.finish, self._callback, secret, query)
        except OpenIdError as error:
            return self._not_signed_in(request, error)
        # A page, not a redirect: with one, the browser would not yet send a cookie that is for this site alone.
        page = self._html(request, self._language(request), "signed_in.html.jinja", {}, HTTPStatus.OK)
        page.delete_cookie(self._openid_cookie, path="/", secure=self.address.has_tls, httponly=True, samesite="lax")
        return await self._signed_in(request, page, self.sessions.open(role, who))

    async def _from_openid(self, ask: Callable[..., T], *values: Any) -> T:
        if self._asks_provider.locked():
            raise OpenIdError("too many are signing in at once")
        async with self._asks_provider:
            return await run_in_threadpool(ask, *values)

    @property
    def _callback(self) -> str:
        return f"{self.address.url}{CALLBACK}"

    @property
    def _openid_cookie(self) -> str:
        return f"{self.address.cookie}-openid"

    def _not_signed_in(self, request: Request, error: OpenIdError) -> Response:
        self._note_refusal(f"not through the provider: {error}")
        return self._sign_in_form(request, "", "sign_in.provider_refused", HTTPStatus.FORBIDDEN)

    def _note_refusal(self, why: str) -> None:
        """Write into the log that somebody was not signed in, now and then: whoever knocks all day fills no disk."""
        self._refusals += 1
        if self._clock() >= self._next_note:
            self._next_note = self._clock() + NOTE_SECONDS
            _logger.warning("sign-in refused, %d since the page began: %s", self._refusals, why)

    async def _sign_out(self, request: Request) -> Response:
        session = self._session(request)
        if session is not None:
            form = await read_form(request, (CSRF_FIELD,))
            if not session.forms.is_ours(form[CSRF_FIELD]):
                raise HTTPException(HTTPStatus.FORBIDDEN)
            self.sessions.close(session)
        response = _to(SIGN_IN)
        tls = self.address.has_tls
        response.delete_cookie(self.address.cookie, path="/", secure=tls, httponly=True, samesite="strict")
        return response

    def _sign_in_form(self, request: Request, token: str, problem: str, status: int = 200) -> Response:
        values = {"token": token, "problem": problem, "provider": BEGIN if self.openid else ""}
        return self._html(request, self._language(request), "sign_in.html.jinja", values, status)

    def _session(self, request: Request) -> Session | None:
        return self.sessions.find(request.cookies.get(self.address.cookie))

    def _to_sign_in(self, request: Request) -> Response:
        if "hx-request" in request.headers:
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": SIGN_IN})
        return _to(SIGN_IN)

    # Answers

    def _visit(self, request: Request, session: Session) -> Visit:
        query = dict(request.query_params)
        return Visit(session, request.url.path, request.path_params, query, self._language(request))

    def _answered(self, request: Request, visit: Visit, answer: Answer, seen: int) -> Response:
        match answer:
            case Page():
                return self._shown(request, visit, answer, seen)
            case Data(content):
                return JSONResponse(shown_in_json(content))
            case Download(path, name):
                if path.is_symlink() or not path.is_file():
                    raise HTTPException(HTTPStatus.NOT_FOUND)
                return FileResponse(path, filename=name, content_disposition_type="attachment")
            case GoTo(path):
                return _to(path)

    def _shown(self, request: Request, visit: Visit, page: Page, seen: int, status: int = 200) -> Response:
        fetched_again = "hx-request" in request.headers
        notice = None if fetched_again else visit.session.notice
        if not fetched_again:
            visit.session.notice = None
        values = dict(page.values) | {"visit": visit, "notice": notice, "seen": seen}
        response = self._html(request, visit.t, page.template, values, status)
        if page.data_images:
            response.headers[POLICY_HEADER] = POLICY_WITH_DATA_IMAGES
        return response

    def _html(self, request: Request, t: Texts, template: str, values: Mapping[str, Any], status: int) -> Response:
        common = {"t": t, "languages": LANGUAGES, "path": request.url.path, "signs_in": SIGN_IN}
        html = self._render(template, {"visit": None, "notice": None, "seen": 0} | common | dict(values))
        response = Response(html, status, media_type="text/html")
        if request.query_params.get("lang") in LANGUAGES:
            tls = self.address.has_tls
            response.set_cookie(_LANGUAGE_COOKIE, t.language, path="/", secure=tls, httponly=True, samesite="strict")
        return response

    def _language(self, request: Request) -> Texts:
        asked, chosen = request.query_params.get("lang"), request.cookies.get(_LANGUAGE_COOKIE)
        return self._texts[choose_language(asked, chosen, request.headers.get("accept-language", ""))]

    async def _refused(self, request: Request, error: HTTPException) -> Response:
        return self._error(request, error.status_code)

    async def _failed(self, request: Request, error: Exception) -> Response:
        shows_tracebacks = error if _logger.isEnabledFor(logging.DEBUG) else None
        _logger.error("a page could not be shown (%s)", type(error).__name__, exc_info=shows_tracebacks)
        return self._error(request, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _error(self, request: Request, status: int) -> Response:
        values = {"status": status, "phrase": HTTPStatus(status).phrase}
        return self._html(request, self._language(request), "error.html.jinja", values, status)

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a page that wants to hear of news."""
        request = Request(scope, receive)
        session = self._session(request)
        if session is None or request.method != "GET":
            status = HTTPStatus.UNAUTHORIZED if session is None else HTTPStatus.METHOD_NOT_ALLOWED
            await Response(status_code=status)(scope, receive, send)
            return
        seen = request.query_params.get("seen", "0")
        number = int(seen) if seen.isdecimal() and seen.isascii() and len(seen) < 16 else 0
        await self._streams.answer(session, number, scope, receive, send)


class _Stream:
    """An ASGI application, not a function: its answer has no end."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._shell.stream(scope, receive, send)


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)
