"""An OpenID Connect provider that answers with whatever ID token a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey


@dataclass
class HostileProvider:
    """What it says.

    Attributes
    ----------
    claims
        Of the next ID token, over honest ones; None leaves one out.
    signs_with
        Its own key, unless a test puts another here.
    addresses
        Over those of its configuration.
    asked
        How often each path was asked for.
    """

    issuer: str
    key: RSAKey
    signs_with: RSAKey
    claims: dict[str, Any] = field(default_factory=dict)
    addresses: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def answer(self, path: str) -> Mapping[str, Any]:
        """What is at a path."""
        self.asked[path] = self.asked.get(path, 0) + 1
        if path == "/token":
            honest = {"iss": self.issuer, "aud": "fedvox", "sub": "acts", "exp": int(time.time()) + 60}
            claims = {name: value for name, value in (honest | self.claims).items() if value is not None}
            token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.signs_with)
            return {"access_token": "a", "token_type": "Bearer", "id_token": token}
        if path == "/keys":
            return KeySet([self.key]).as_dict(private=False)
        paths = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys"}
        return {"issuer": self.issuer} | {name: f"{self.issuer}{path}" for name, path in paths.items()} | self.addresses


@contextmanager
def hostile_provider() -> Iterator[HostileProvider]:
    """Serve one on this machine, for a block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(provider.answer(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    key = RSAKey.generate_key(2048, {"kid": "one"})
    provider = HostileProvider(f"http://127.0.0.1:{server.server_port}", key, key)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
