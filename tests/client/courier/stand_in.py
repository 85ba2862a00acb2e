"""A gateway for faults: keeps the contract for files and heartbeats, relays Fleet calls to a real SuperLink, and
breaks, holds or refuses what a test tells it to."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from common.certificates import key_of
from common.identity import claim_of, is_signed_by
from common.protocol.codec import unpack_heartbeat
from common.protocol.messages import Heartbeat
from tests.client.courier.kits import Kits
from tests.mutual_tls import server_context

WINDOW = 64 * 2**20
PORTION = 64 * 1024


@dataclass
class Fault:
    """What happens to requests that match, ``times`` times.

    method, path: of the request; the path is a regular expression.
    hold: the request waits for it. status, headers: are answered at once. cut: bytes of a body after which the
    connection breaks. damage: the answer's first byte is another. slow: seconds for each portion of a body.
    """

    method: str
    path: str
    times: int = 1
    hold: threading.Event | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    word: str = ""
    cut: int | None = None
    damage: bool = False
    slow: float = 0.0
    seen: int = 0


@dataclass(frozen=True)
class Request:
    """What came, and how it was answered."""

    method: str
    path: str
    headers: dict[str, str]
    status: int


class StandIn:
    """The gateway's state.

    Args:
        kits: whose sites are let in.
        superlink: port of a SuperLink; None answers Fleet calls with 503.
    """

    def __init__(self, kits: Kits, superlink: int | None = None) -> None:
        self.kits = kits
        self.superlink = superlink
        self.port = 0
        self.models: dict[str, bytes | Path] = {}
        self.update_bytes: dict[str, int] = {}
        self.parts: dict[tuple[str, str], bytearray] = {}
        self.uploading: set[tuple[str, str]] = set()
        self.updates: dict[str, bytes] = {}
        self.keep_updates = True
        self.beats: list[Heartbeat] = []
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.keys: dict[str, Any] = {}
        self.bell = threading.Event()
        self.errors: list[str] = []
        self.patient = True
        self.lock = threading.Lock()

    def reset(self) -> None:
        """Forgets faults and requests of an earlier test."""
        for fault in self.faults:
            if fault.hold is not None:
                fault.hold.set()
        self.faults, self.requests = [], []

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Questions for messages are not held for long."""
        self.patient = False
        self.bell.set()
        yield
        self.patient = True

    def publish(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.models[digest] = content
        return digest

    def let_in(self, kit: Path, site: str = "north") -> None:
        certificate = x509.load_pem_x509_certificate((kit / "site.crt").read_bytes())
        self.keys[site] = key_of(certificate)

    def add(self, *arguments: Any, **options: Any) -> Fault:
        fault = Fault(*arguments, **options)
        self.faults.append(fault)
        return fault

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.fullmatch(fault.path, path) and fault.seen < fault.times:
                    fault.seen += 1
                    return fault
        return None

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests that match."""
        return [item for item in list(self.requests) if item.method == method and re.fullmatch(path, item.path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gateway: StandIn

    def handle_any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_headers, self.cut, self.slow, self.damage = headers, None, 0.0, False
        fault = self.gateway.fault(self.command, self.path)
        if fault is not None:
            if fault.hold is not None:
                fault.hold.wait(60)
            self.cut, self.slow, self.damage = fault.cut, fault.slow, fault.damage
            if fault.status:
                self.read_body()
                self.answer(fault.status, fault.headers, fault.word.encode())
                return
        claim = claim_of(headers)
        key = None if claim is None else self.gateway.keys.get(claim.site)
        if claim is None or key is None or not is_signed_by(key, claim, self.command, self.path, headers):
            self.read_body()
            self.answer(401, {}, b"signature")
            return
        self.claimed = claim.body
        for pattern, method in (
            (r"/models/([0-9a-f]{64})", self.model),
            (r"/updates/([0-9a-f]{32})/([0-9a-f]{64})", self.update),
            (r"(/heartbeat)", self.heartbeat),
            (r"(/v1/fleet/[a-z-]+)", self.fleet),
        ):
            if found := re.fullmatch(pattern, self.path):
                method(*found.groups())
                return
        self.answer(404)

    do_GET = do_HEAD = do_POST = do_PATCH = handle_any  # noqa: N815 -- names that http.server looks for

    def model(self, digest: str) -> None:
        content = self.gateway.models.get(digest)
        if content is None:
            self.answer(404)
            return
        content = content.read_bytes() if isinstance(content, Path) else content
        if self.command == "HEAD":
            self.answer(200, length=len(content))
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.request_headers.get("range", ""))
        if found is None:
            self.answer(200, {}, content)
            return
        first = int(found[1])
        last = min(int(found[2] or len(content) - 1), len(content) - 1, first + WINDOW - 1)
        if first >= len(content):
            self.answer(416, {"content-range": f"bytes */{len(content)}"})
            return
        part = content[first : last + 1]
        if self.damage:
            part = bytes([part[0] ^ 1]) + part[1:]
        self.answer(206, {"content-range": f"bytes {first}-{last}/{len(content)}"}, part)

    def update(self, task: str, digest: str) -> None:
        size = self.gateway.update_bytes.get(task)
        if size is None:
            self.read_body()
            self.answer(404)
            return
        part = self.gateway.parts.setdefault((task, digest), bytearray())
        if digest in self.gateway.updates:
            self.read_body()
            self.answer(200 if self.command == "HEAD" else 201, {"upload-complete": "?1"})
            return
        if self.command == "HEAD":
            self.answer(200, {"upload-offset": str(len(part))})
            return
        assert self.claimed == digest
        if int(self.request_headers["upload-length"]) != size:
            self.read_body()
            self.answer(413)
            return
        busy = self.gateway.uploading
        if int(self.request_headers["upload-offset"]) != len(part) or (task, digest) in busy:
            self.read_body()
            self.answer(409, {"upload-offset": str(len(part))})
            return
        busy.add((task, digest))
        try:
            self.read_body(part)
        finally:
            busy.discard((task, digest))
        if len(part) < size:
            self.answer(202, {"upload-offset": str(len(part))})
        elif hashlib.sha256(part).hexdigest() != digest:
            del self.gateway.parts[task, digest]
            self.answer(422)
        else:
            self.gateway.updates[digest] = bytes(part) if self.gateway.keep_updates else b""
            del self.gateway.parts[task, digest]
            self.answer(201, {"upload-complete": "?1"})

    def heartbeat(self, _: str) -> None:
        body = self.read_body()
        assert hashlib.sha256(body).hexdigest() == self.claimed
        self.gateway.beats.append(unpack_heartbeat(body))
        self.answer(204)

    def fleet(self, path: str) -> None:
        body = self.read_body()
        assert hashlib.sha256(body).hexdigest() == self.claimed
        names = ("content-type", "accept")
        headers = {name: value for name, value in self.request_headers.items() if "flwr" in name or name in names}
        deadline = time.monotonic() + (20 if self.request_headers.get("prefer") == "wait=20" else 0)
        while True:
            status, kind, content = self.relay(path, body, headers)
            is_over = not self.gateway.patient or time.monotonic() >= deadline
            if status != 200 or content or not path.endswith("pull-messages") or is_over:
                break
            self.gateway.bell.wait(0.3)
            self.gateway.bell.clear()
            if self.is_gone():  # a message that is taken for nobody would be lost
                raise ConnectionError
        self.answer(status, {"content-type": kind}, content)

    def is_gone(self) -> bool:
        with socket.socket(fileno=os.dup(self.connection.fileno())) as plain:
            plain.setblocking(False)
            try:
                return plain.recv(1, socket.MSG_PEEK) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

    def relay(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        if self.gateway.superlink is None:
            return 503, "text/plain", b""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.superlink, timeout=30)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheader("content-type", ""), response.read()
        except OSError:
            return 503, "text/plain", b""
        finally:
            connection.close()

    def read_body(self, into: bytearray | None = None) -> bytes:
        content = bytearray() if into is None else into
        left, read = int(self.headers.get("content-length", "0")), 0
        while left:
            part = self.rfile.read(min(left, PORTION))
            if not part:
                raise ConnectionError
            content += part
            left, read = left - len(part), read + len(part)
            time.sleep(self.slow)
            if self.cut is not None and read >= self.cut:
                raise ConnectionError
        return bytes(content) if into is None else b""

    def answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", length: int | None = None
    ) -> None:
        self.gateway.requests.append(Request(self.command, self.path, self.request_headers, status))
        self.send_response_only(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), PORTION):
            if self.cut is not None and start >= self.cut:
                raise ConnectionError
            self.wfile.write(body[start : start + PORTION])
            time.sleep(self.slow)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def stand_in(kits: Kits, superlink: int | None = None, host: str = "127.0.0.1") -> Iterator[StandIn]:
    """The gateway on a port of this machine."""
    gateway = StandIn(kits, superlink)
    context = server_context(kits.server)
    connections: set[socket.socket] = set()

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

        def finish_request(self, request: socket.socket, address: object) -> None:  # type: ignore[override]
            request = context.wrap_socket(request, server_side=True)
            connections.add(request)
            try:
                super().finish_request(request, address)
            finally:
                connections.discard(request)
                # Without a farewell, as a line that breaks.
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)
                request.close()

        def handle_error(self, *_: object) -> None:
            gateway.errors.append(repr(sys.exception()))

    class Handler(_Handler):
        pass

    Handler.gateway = gateway
    server = Server((host, 0), Handler)
    gateway.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield gateway
    finally:
        for fault in gateway.faults:
            if fault.hold is not None:
                fault.hold.set()
        server.shutdown()
        for connection in list(connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()


class Attempt(threading.Thread):
    """Something that is under way; ``error``: what it ended with, None if it went well."""

    def __init__(self, work: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._work, self._arguments = work, arguments
        self.start()

    def run(self) -> None:
        try:
            self._work(*self._arguments)
        except BaseException as error:
            self.error = error

    def end(self, seconds: float = 20) -> None:
        self.join(seconds)
        assert not self.is_alive()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Polls until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)
    return found
