"""``POST /v1/fleet/METHOD``: relays a site's calls to SuperLink, with long polling for messages.

Records two facts for the server app and for later calls: which node a message goes to, before it is delivered, and
that SuperLink has a complete reply. When a reply is announced, SuperLink lists the objects that it lacks. An empty list
means either that it has them all or that it refused the reply without saying so; then each object is checked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import httpx

from server.flower import (
    PROTOBUF_MEDIA_TYPE,
    ProtobufError,
    PullMessagesResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushMessagesResponse,
    PushObjectResponse,
)
from server.gateway.answers import Answer
from server.gateway.fleet.announcements import Announcements
from server.gateway.fleet.long_poll import Bells, Waiting
from server.gateway.fleet.rules import FleetCall, FleetRules, objects_of
from server.gateway.identity import Site
from server.gateway.refusals import RefusedError
from server.run_store.gateway_folder import GatewayFolder

ASK_AGAIN_SECONDS = 5.0
"""Interval after which a long poll asks SuperLink again even if no bell rang."""
SUPERLINK_SECONDS = 30.0
"""Timeout for one response from SuperLink."""
_CONNECTIONS = 32
_IDLE_SECONDS = 2.5
"""Idle connections are not reused after this time. SuperLink closes them after 5 s, which could race with a reuse."""
log = logging.getLogger("fedvox.gateway")
T = TypeVar("T")


class Fleet:
    """Relays sites' calls to SuperLink. Call ``open`` first.

    Parameters
    ----------
    folder
        The gateway's folder.
    longest_wait
        The longest duration of a long poll, in seconds.
    """

    def __init__(self, folder: GatewayFolder, longest_wait: float) -> None:
        self._folder = folder
        self._longest_wait = longest_wait
        self._announcements = Announcements()
        self._rules = FleetRules(folder, self._announcements)
        self._bells = Bells(folder)
        # A single thread: the rules are not thread-safe.
        self._rule_thread = ThreadPoolExecutor(1, "rules")
        self._background: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Open the HTTP client and start watching the bells; call in the event loop."""
        limits = httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS)
        self._client = httpx.AsyncClient(trust_env=False, timeout=SUPERLINK_SECONDS, limits=limits)
        self._background.add(asyncio.create_task(self._bells.run()))

    def stop_waiting(self) -> None:
        """Answer all long polls at once, including later ones."""
        self._bells.stop()

    async def close(self) -> None:
        """Stop watching the bells and close the connections to SuperLink."""
        for task in self._background:
            task.cancel()
        await self._client.aclose()
        self._rule_thread.shutdown(wait=False, cancel_futures=True)

    async def relay(
        self, site: Site, method: str, headers: Mapping[str, str], body: bytes, gone: Callable[[], Awaitable[None]]
    ) -> Answer:
        """Relay a call to SuperLink and return its answer.

        Parameters
        ----------
        site
            The site that signed the request.
        method
            The Fleet method, one of ``rules.METHODS``.
        headers
            The request's headers; Flower's own are passed on.
        body
            The request's body.
        gone
            Returns when the client hangs up.

        Raises
        ------
        RefusedError
            The site may not make this call, or SuperLink does not answer.
        """
        call = await self._in_rule_thread(lambda: self._rules.admit(site, method, headers, body))
        passed = {name: value for name, value in headers.items() if name.startswith("flwr-") or name == "accept"}
        passed["content-type"] = PROTOBUF_MEDIA_TYPE
        try:
            if method == "pull-messages":
                response = await self._long_poll(call, passed, _preferred_wait(headers.get("prefer", "")), gone)
            else:
                response = await self._ask(method, call.content, passed)
            if response.status_code == 200 and method == "push-messages":
                await self._note_announced(call, response.content, passed)
            elif response.status_code == 200 and method == "push-object":
                await self._note_stored(call, response.content)
        except (httpx.HTTPError, httpx.InvalidURL, ProtobufError) as error:
            log.warning("SuperLink does not answer %s: %s", method, type(error).__name__)
            raise RefusedError(503, "superlink") from None
        kind = response.headers.get("content-type", "application/octet-stream")
        return Answer(response.status_code, {"content-type": kind}, response.content)

    async def _ask(self, method: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        port = self._folder.superlink()
        if port is None:
            raise RefusedError(503, "superlink")
        url = f"http://127.0.0.1:{port}/v1/fleet/{method}"
        return await self._client.post(url, content=content, headers=dict(headers))

    async def _long_poll(
        self, call: FleetCall, headers: Mapping[str, str], preferred: float, gone: Callable[[], Awaitable[None]]
    ) -> httpx.Response:
        deadline = time.monotonic() + min(preferred, self._longest_wait)
        with self._bells.waiting(call.node) as entry:
            watching = asyncio.ensure_future(_end_when(gone, entry)) if preferred else None
            try:
                while True:
                    entry.look()
                    response = await self._ask(call.method, call.content, headers)
                    left = deadline - time.monotonic()
                    if await self._note_messages(call, response) or response.status_code != 200 or left <= 0:
                        return response
                    if not entry.is_over:
                        await entry.wait(min(left, ASK_AGAIN_SECONDS))
                    # Do not ask again: the client may be gone, and the message would be lost.
                    if entry.is_over:
                        return response
            finally:
                if watching is not None:
                    watching.cancel()

    async def _note_messages(self, call: FleetCall, response: httpx.Response) -> bool:
        """Record the messages in a response; return whether there are any."""
        if response.status_code != 200 or not response.content:
            return False
        answer = PullMessagesResponse.FromString(response.content)
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=False):
            await self._in_rule_thread(partial(self._rules.note_handed_out, call.node, message, tree))
        return len(answer.messages_list) > 0

    async def _note_announced(self, call: FleetCall, content: bytes, headers: Mapping[str, str]) -> None:
        answer = PushMessagesResponse.FromString(content)
        [message], [tree] = call.request.messages_list, call.request.message_object_trees
        reply_to = message.metadata.reply_to_message_id
        if answer.objects_to_push:
            wanted = set(answer.objects_to_push)
            await self._in_rule_thread(
                lambda: self._announcements.begin(call.node, answer.session_id, reply_to, wanted)
            )
        elif await self._has_all(call, message.metadata.run_id, objects_of(tree), headers):
            await self._in_rule_thread(lambda: self._folder.note_reply(reply_to))

    async def _has_all(self, call: FleetCall, run: int, objects: list[str], headers: Mapping[str, str]) -> bool:
        """Return whether SuperLink has all objects of a reply; reuses the site's fresh authentication headers."""
        for identity in objects:
            request = PullObjectRequest(node=call.request.node, run_id=run, object_id=identity)
            response = await self._ask("pull-object", request.SerializeToString(), headers)
            if response.status_code != 200 or not PullObjectResponse.FromString(response.content).object_available:
                return False
        return True

    async def _note_stored(self, call: FleetCall, content: bytes) -> None:
        if not PushObjectResponse.FromString(content).stored:
            return
        request = call.request

        def note() -> None:
            answered = self._announcements.note_stored(call.node, request.session_id, request.object_id)
            if answered is not None:
                self._folder.note_reply(answered)

        await self._in_rule_thread(note)

    async def _in_rule_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._rule_thread, work)


async def _end_when(gone: Callable[[], Awaitable[None]], entry: Waiting) -> None:
    await gone()
    entry.end()


def _preferred_wait(prefer: str) -> float:
    """Return the seconds in ``prefer: wait=SECONDS``; 0 if absent or malformed."""
    name, _, number = prefer.partition("=")
    is_number = number.isascii() and number.isdecimal() and len(number) <= 4
    return float(number) if name.strip() == "wait" and is_number else 0.0
