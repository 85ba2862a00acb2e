"""Servers that want a client certificate, as the gateway does: Python's own (OpenSSL), and Granian (rustls)."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common.certificates import certificate_pem, key_of, load_certificate, new_key, private_pem, public_pem
from common.system.supervisor import free_port
from server.provisioning.certificate_authority import Authority

SERVER_FILES = ("ca.crt", "ca.crl", "server.crt", "server.key")


def write_server(folder: Path, authority: Authority, days: int = 90, start: datetime | None = None) -> Path:
    """What of a server's kit TLS needs, valid for the loopback interface."""
    folder.mkdir(exist_ok=True)
    issued = authority.issue(["localhost", "::1"], days, start)
    for name, content in zip(
        SERVER_FILES, (authority.pem, authority.revocation_list({}), issued.certificate, issued.key), strict=True
    ):
        (folder / name).write_bytes(content)
    return folder


def write_site(
    folder: Path, authority: Authority, site: str = "north", days: int = 90, start: datetime | None = None
) -> Path:
    """What of a site's kit TLS needs."""
    folder.mkdir(exist_ok=True)
    key = new_key()
    certificate = authority.issue_to_site(site, key.public_key(), days, start)
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "site.crt").write_bytes(certificate_pem(certificate))
    (folder / "site.key").write_bytes(private_pem(key))
    (folder / "site.key").chmod(0o600)
    return folder


def server_context(kit: Path) -> ssl.SSLContext:
    """Wants a certificate of the kit's authority that its list of revoked ones does not hold, strictly in form."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "server.crt", kit / "server.key")
    context.load_verify_locations(kit / "ca.crt")
    context.load_verify_locations(kit / "ca.crl")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(kit: Path | None, authority: Path) -> ssl.SSLContext:
    """Trusts an authority, strictly in form, and shows a site's certificate, or none."""
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if kit is not None:
        context.load_cert_chain(kit / "site.crt", kit / "site.key")
    return context


@contextmanager
def https_server(
    context: ssl.SSLContext | None,
    host: str = "127.0.0.1",
    clock: timedelta | None = timedelta(0),
    status: int = 404,
    word: str = "",
) -> Iterator[int]:
    """Answers every GET in the same way.

    Args:
        context: None serves without TLS.
        clock: how far its clock is ahead; None sends no date.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response_only(status)
            if clock is not None:
                self.send_header("Date", self.date_time_string((datetime.now(UTC) + clock).timestamp()))
            self.send_header("Content-Length", str(len(word)))
            self.end_headers()
            self.wfile.write(word.encode())

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def finish_request(self, request: socket.socket, address: object) -> None:  # type: ignore[override]
            if context is not None:
                request = context.wrap_socket(request, server_side=True)
            super().finish_request(request, address)

        def handle_error(self, *_: object) -> None:
            return

    server = Server((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def granian(kit: Path, folder: Path) -> Iterator[int]:
    """Granian with a server's kit, answering 404 to everything; its files are in ``folder``."""
    (folder / "says_no.py").write_text("async def app(scope, proto):\n    proto.response_empty(404, [])\n")
    port = free_port()
    program = shutil.which("granian", path=str(Path(sys.executable).parent))
    assert program is not None
    command: list[str | Path] = [program, "--interface", "rsgi", "--http", "1"]
    command += ["--no-ws", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    command += ["--ssl-certificate", kit / "server.crt", "--ssl-keyfile", kit / "server.key", "--ssl-client-verify"]
    command += ["--ssl-ca", kit / "ca.crt", "--ssl-crl", kit / "ca.crl", "says_no:app"]
    process = subprocess.Popen(command, cwd=folder)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "granian does not listen"
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def public_key_of(file: Path) -> bytes:
    """The public key of a certificate file as Flower registers it."""
    return public_pem(key_of(load_certificate(file)))
