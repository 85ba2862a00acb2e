"""Of all that Flower's server answers to, only the calls that a site needs get through, however they are spelt."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supercore.routers import health
from flwr.supercore.routers.runtime import create_runtime_router, responses_router
from flwr.superlink.routers.control import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router

from server.gateway.fleet.rules import METHODS
from tests.server.gateway.lab import Lab, Reply, SiteClient, digest_of, lab
from tests.server.gateway.node import Node, write_nodes

ROUTERS = (health.router, control_router, fleet_router, create_runtime_router("SuperLink"), responses_router)
PATHS = sorted(
    {route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    | {path for _, path in PROTOBUF_REQUEST_TYPES}
    | {"/", "/docs", "/openapi.json", "/redoc", "/v1/fleet", "/v1/fleet/", "/health", "/metrics"}
)
ALLOWED = frozenset(f"/v1/fleet/{method}" for method in METHODS)
NUMBER = 77


@dataclass
class Upstream:
    """In SuperLink's place: answers everything, and remembers what for."""

    port: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    found = Upstream()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            found.seen.append((self.command, self.path))
            self.send_response_only(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    found.port = server.server_port
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Lab]:
    """Behind a proxy, for speed: what is looked at here is HTTP."""
    folder: Path = tmp_path_factory.mktemp("fronted")
    with lab(folder, limits={"wait_seconds": 1}, options=("--tls-ended-by-proxy",)) as made:
        made.folder.set_superlink(upstream.port)
        write_nodes(made.run, {"north": NUMBER})
        yield made


def body_of(path: str, client: SiteClient) -> bytes:
    """A call that would be all right."""
    node = ProtoNode(node_id=NUMBER)
    calls = {
        "activate-node": ActivateNodeRequest(public_key=client.pem, heartbeat_interval=30),
        "deactivate-node": DeactivateNodeRequest(node_id=NUMBER),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
    }
    return bytes(calls.get(path.rpartition("/")[2], PullMessagesRequest(node=node)).SerializeToString())


def ask(client: SiteClient, target: str, method: str = "POST", signed: str | None = None, lines: str = "") -> Reply:
    """A request with both signatures, in the very letters of ``target``; ``signed``: what is signed instead."""
    body = body_of(target.lower(), client)
    headers = Node(client, NUMBER).proof()
    headers |= client.signed(method, signed or target, digest_of(body))
    text = f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + "".join(
        f"{k}: {v}\r\n" for k, v in headers.items()
    )
    text += lines or f"content-length: {len(body)}\r\n"
    answer = client.raw(text.encode("latin-1") + b"\r\n" + body)
    head, _, content = answer.partition(b"\r\n\r\n")
    return Reply(int(head.split(b" ")[1]) if head else 0, {}, content)


def test_what_is_listed_here_is_what_flower_has() -> None:
    assert set(PATHS) > ALLOWED
    for prefix, least in (("/v1/fleet/", 12), ("/v1/control/", 40), ("/v1/runtime/", 20)):
        assert len([path for path in PATHS if path.startswith(prefix)]) >= least


@pytest.mark.parametrize("path", PATHS)
def test_only_the_calls_that_a_site_needs_pass(fronted: Lab, upstream: Upstream, path: str) -> None:
    client = fronted.client()
    upstream.seen.clear()
    if path in (
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
    ):
        assert ask(client, path).status == 200
        assert upstream.seen == [("POST", path)]
    else:
        # The others of the allowed ones name things that this site does not have.
        assert ask(client, path).status in ((403, 503) if path in ALLOWED else (404,))
        assert upstream.seen == []
    upstream.seen.clear()
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "post", "POSTX"):
        assert ask(client, path, method).status == (405 if path in ALLOWED else 404), method
    assert upstream.seen == []


def spellings(path: str) -> list[str]:
    first, last = path[1], path.rpartition("/")[2]
    return [
        f"/{path}",
        path.replace("/", "//"),
        f"{path}/",
        f"{path}/.",
        f"/.{path}",
        f"/x/..{path}",
        f"{path}/../{last}",
        path.upper(),
        path.title(),
        f"/%{ord(first):02x}{path[2:]}",
        path.replace("/", "%2f"),
        path.replace("/", "%2F")[3:],
        path.replace("/", "\\"),
        f"{path}%00",
        f"{path}%0d%0a",
        f"{path}%20",
        f"{path};x=1",
        f"{path}?x=1",
        f"{path}.json",
        f"{path}x",
        path[:-1],
        f"http://127.0.0.1{path}",
        f"http://127.0.0.1:9091{path}",
        f"https://x@127.0.0.1{path}",
        path[1:],
        "*",
    ]


@pytest.mark.parametrize("path", PATHS[1:])
def test_another_spelling_is_another_path(fronted: Lab, upstream: Upstream, path: str) -> None:
    client = fronted.client()
    upstream.seen.clear()
    for target in spellings(path):
        if target not in PATHS:
            # Of the forbidden ones, signed as a reader might understand them, which a site with bad intent can do.
            found = ask(client, target, signed=target if path in ALLOWED else path)
            assert found.status in (0, 400, 401, 404), (target, found)
    assert upstream.seen == []


@pytest.mark.parametrize("target", spellings("/v1/fleet/pull-messages"))
def test_a_spelling_signed_as_its_meaning_gets_no_more_than_the_call_itself(
    fronted: Lab, upstream: Upstream, target: str
) -> None:
    """Granian decodes a path before it is seen here; what goes to SuperLink is written anew."""
    upstream.seen.clear()
    ask(fronted.client(), target, signed="/v1/fleet/pull-messages")
    assert upstream.seen in ([], [("POST", "/v1/fleet/pull-messages")])


LENGTHS = {
    "two lengths": "content-length: {size}\r\ncontent-length: {more}\r\n",
    "two lengths the other way round": "content-length: {more}\r\ncontent-length: {size}\r\n",
    "a list of lengths": "content-length: {size}, {size}\r\n",
    "a sign": "content-length: +{size}\r\n",
    "a number of another base": "content-length: 0x5\r\n",
    "chunked with a length": "content-length: {size}\r\ntransfer-encoding: chunked\r\n",
    "a length with chunked": "transfer-encoding: chunked\r\ncontent-length: {size}\r\n",
    "chunked alone": "transfer-encoding: chunked\r\n",
    "chunked twice": "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
    "chunked in disguise": "transfer-encoding: xchunked\r\n",
    "chunked behind a tab": "transfer-encoding:\tchunked\r\n",
    "a blank before the colon": "content-length : {size}\r\n",
    "a folded line": "content-length: {size}\r\n  1\r\n",
    "none": "x: y\r\n",
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_body_whose_length_is_in_doubt_is_refused(fronted: Lab, upstream: Upstream, name: str) -> None:
    client, path = fronted.client(), "/v1/fleet/pull-messages"
    upstream.seen.clear()
    size = len(body_of(path, client))
    found = ask(client, path, lines=LENGTHS[name].format(size=size, more=size + 5))
    assert found.status in (0, 400, 411), found
    assert upstream.seen == []


def test_equal_lengths_and_what_follows_a_body_are_no_second_request(fronted: Lab, upstream: Upstream) -> None:
    client, path = fronted.client(), "/v1/fleet/pull-messages"
    size = len(body_of(path, client))
    upstream.seen.clear()
    assert ask(client, path, lines=f"content-length: {size}\r\ncontent-length: {size}\r\n").status == 200
    assert upstream.seen == [("POST", path)]
    # A shorter length: the rest would be a request of its own, which nobody has signed.
    assert ask(client, path, lines=f"content-length: {size - 1}\r\n").status == 401
    assert upstream.seen == [("POST", path)]


@pytest.mark.parametrize(
    "name",
    [
        "fedvox-site",
        "fedvox-time",
        "fedvox-body-sha256",
        "fedvox-signature",
        "fedvox-client-name",
        "range",
        "flwr-public-key",
    ],
)
def test_a_header_that_counts_may_not_stand_twice(fronted: Lab, upstream: Upstream, name: str) -> None:
    client, path = fronted.client(), "/v1/fleet/pull-messages"
    upstream.seen.clear()
    size = len(body_of(path, client))
    value = "north"
    twice = f"{name}: {value}\r\n" * (2 if name == "range" else 1)
    assert ask(client, path, lines=f"content-length: {size}\r\n{twice}").status == 400
    assert upstream.seen == []


def test_other_headers_change_nothing(fronted: Lab, upstream: Upstream) -> None:
    client, path = fronted.client(), "/v1/control/start-run"
    upstream.seen.clear()
    for line in ("x-original-url: {0}", "x-rewrite-url: {0}", "x-http-method-override: POST", "host: 127.0.0.1:9091"):
        lines = "content-length: 0\r\n" + line.format("/v1/fleet/pull-messages") + "\r\n"
        assert ask(client, path, lines=lines).status in (400, 401, 404)
    assert upstream.seen == []


def test_nobody_waits_longer_than_the_limit(fronted: Lab, upstream: Upstream) -> None:
    client, path = fronted.client(), "/v1/fleet/pull-messages"
    began = time.monotonic()
    lines = f"content-length: {len(body_of(path, client))}\r\nprefer: wait=9999\r\n"
    assert ask(client, path, lines=lines).status == 200
    assert 0.9 < time.monotonic() - began < 10
