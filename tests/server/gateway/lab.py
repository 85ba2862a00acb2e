"""A gateway in a process of its own, with an authority made for the test, and sites that speak to it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import load_key, public_pem
from common.config.network import format_endpoint
from common.identity import _HASH as HASH
from common.identity import BODY_HEADER, SIGNATURE_HEADER, SITE_HEADER, TIME_HEADER, sign, signed_text
from common.system.supervisor import free_port
from server.provisioning.certificate_authority import Authority
from server.run_store.gateway_folder import GatewayFolder, OpenTask
from tests.mutual_tls import client_context, write_server, write_site

TASK = "0123456789abcdef" * 2
NOTHING = hashlib.sha256(b"").hexdigest()
ABSENT = "ab" * 32


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Polls until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)
    return found


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def word(self) -> str:
        return self.body.decode()


@dataclass
class SiteClient:
    """A site: its key and its certificate."""

    name: str
    port: int
    key: ec.EllipticCurvePrivateKey
    context: ssl.SSLContext | None
    pem: bytes = b""
    extra: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    def connect(self, timeout: float = 20.0) -> http.client.HTTPConnection:
        if self.context is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        return http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=timeout)

    def socket(self, timeout: float = 20.0) -> socket.socket:
        plain = socket.create_connection((self.host, self.port), timeout=timeout)
        return plain if self.context is None else self.context.wrap_socket(plain, server_hostname="localhost")

    def signed(
        self, method: str, path: str, digest: str = NOTHING, headers: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Headers of a request with its signature."""
        return {**(headers or {}), **sign(self.key, self.name, method, path, digest, headers or {}), **self.extra}

    def signed_at(self, seconds: float, method: str, path: str, digest: str = NOTHING) -> dict[str, str]:
        """As ``signed``, by a clock that is so many seconds off."""
        stamp = time.time_ns() + int(seconds * 1e9)
        signature = self.key.sign(signed_text(self.name, method, path, stamp, digest, {}), HASH)
        return {
            SITE_HEADER: self.name,
            TIME_HEADER: str(stamp),
            BODY_HEADER: digest,
            SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            **self.extra,
        }

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        digest: str | None = None,
        connection: http.client.HTTPConnection | None = None,
        timeout: float = 20.0,
    ) -> Reply:
        """Signs and sends; ``digest``: what is signed in place of the body's."""
        signed = self.signed(method, path, digest or digest_of(body), headers)
        return send(connection or self.connect(timeout), method, path, signed, body)

    def upload(self, digest: str, body: bytes, offset: int = 0, length: int | None = None, task: str = TASK) -> Reply:
        headers = {"upload-offset": str(offset), "upload-length": str(offset + len(body) if length is None else length)}
        return self.request("PATCH", f"/updates/{task}/{digest}", body, headers, digest)

    def offset(self, digest: str, task: str = TASK) -> tuple[int, bool]:
        """How much of an update the gateway has, and whether it is whole."""
        found = self.request("HEAD", f"/updates/{task}/{digest}")
        assert found.status == 200
        return int(found.headers["upload-offset"]), found.headers.get("upload-complete") == "?1"

    def raw(self, text: bytes, seconds: float = 20.0) -> bytes:
        """What comes back for some bytes, until the answer's body is there or the connection is closed."""
        answer = b""
        with self.socket(seconds) as connection:
            try:
                connection.sendall(text)
                while part := connection.recv(65536):
                    answer += part
                    if _is_whole(answer):
                        break
            except TimeoutError:
                return b""
            except OSError:
                pass
            return answer


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    return bool(separator) and found is not None and len(body) >= int(found[1])


def send(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> Reply:
    """Sends a request as it is; the connection stays open if both ends agree."""
    has_body = body or method in ("POST", "PATCH")
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    if has_body:
        connection.putheader("content-length", str(len(body)))
    try:
        connection.endheaders()
        connection.send(body)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before all of it was read
    response = connection.getresponse()
    return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


class Lab:
    """A kit, a run folder, and a gateway.

    Args:
        folder: for everything.
        sites: let in.
        limits: values of ``server.gateway.quotas.Limits`` that differ from the usual ones.
        options: further ones on the command line.
        host: where it listens.
    """

    def __init__(
        self,
        folder: Path,
        sites: tuple[str, ...] = ("north", "south"),
        limits: Mapping[str, float] | None = None,
        options: tuple[str, ...] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.path = folder
        self.kit, self.run = folder / "kit", folder / "run"
        self.authority = Authority.create("tiny")
        self.options = options
        self.host = host
        self.limits = dict(limits or {})
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = GatewayFolder(self.run)
        write_server(self.kit, self.authority)
        (self.kit / "sites").mkdir()
        self.run.mkdir()
        self.folder.make()
        for site in sites:
            self.let_in(site)

    def let_in(self, site: str) -> None:
        if not (self.path / site).exists():
            write_site(self.path / site, self.authority, site)
        (self.kit / "sites" / f"{site}.crt").write_bytes((self.path / site / "site.crt").read_bytes())

    def revoke(self, site: str) -> None:
        (self.kit / "sites" / f"{site}.crt").unlink()

    def revoke_by_list(self, *serials: int) -> None:
        content = self.authority.revocation_list({serial: datetime.now().astimezone() for serial in serials})
        temporary = self.kit / ".ca.crl"
        temporary.write_bytes(content)
        temporary.replace(self.kit / "ca.crl")

    def client(self, site: str = "north", certificate_of: str | None = None) -> SiteClient:
        key = load_key(self.path / site / "site.key")
        plain = "--tls-ended-by-proxy" in self.options
        context = None if plain else client_context(self.path / (certificate_of or site), self.kit / "ca.crt")
        extra = {"fedvox-client-name": certificate_of or site} if plain else {}
        return SiteClient(site, self.port, key, context, public_pem(key.public_key()), extra, self.host)

    def command(self) -> list[str]:
        module = (
            ["-m", "tests.server.gateway.limited", json.dumps(self.limits)] if self.limits else ["-m", "server.gateway"]
        )
        listen = ["--kit", str(self.kit), "--run", str(self.run), "--listen", format_endpoint(self.host, self.port)]
        return [sys.executable, *module, *listen, *self.options]

    def start(self, **options: Any) -> None:
        environment = os.environ | {"FLWR_HOME": str(self.path / "flwr"), "FLWR_DISABLE_UPDATE_CHECK": "1"}
        with (self.path / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment, **options)
        wait_for(self.is_up, "a gateway", 60)

    def is_up(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> str:
        return (self.path / "gateway.log").read_text()

    def refused(self, site: str, reason: str) -> int:
        try:
            content = json.loads((self.folder.path / "refused.json").read_bytes())
        except FileNotFoundError:
            return 0
        return int(content.get(site, {}).get(reason, 0))

    def memory(self) -> float:
        """Anonymous memory of the gateway, in megabytes."""
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    def sockets(self) -> int:
        """How many sockets the gateway has open."""
        assert self.process is not None
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += str(file.readlink()).startswith("socket:")
        return count

    def open_task(
        self, site: str = "north", name: str = TASK, model: bytes = b"model", offset: int = 0, update_bytes: int = 0
    ) -> OpenTask:
        """Opens a task whose model lies ``offset`` bytes deep in a file."""
        digest = digest_of(model)
        file = self.run / "models" / f"{digest[:16]}-{offset}"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"\xee" * offset + model + b"\xee" * 7)
        task = OpenTask(name, digest, str(file.relative_to(self.run)), offset, len(model), update_bytes)
        self.folder.open_task(site, task)
        return task

    def part(self, site: str, digest: str) -> Path:
        return self.folder.updates(site) / f".{digest}.part"


@contextmanager
def lab(folder: Path, *arguments: Any, **options: Any) -> Iterator[Lab]:
    """A gateway that serves."""
    made = Lab(folder, *arguments, **options)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.kill()
