"""The settings for nginx that the gateway's documentation gives, as they stand there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

import server.gateway.serve
from common.certificates import load_key, public_pem
from common.system.supervisor import free_port
from tests.mutual_tls import client_context
from tests.server.gateway.lab import Lab, SiteClient, digest_of, lab, wait_for

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [pytest.mark.deploy, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


class Front:
    def __init__(self, made: Lab, port: int) -> None:
        self.lab, self.port = made, port

    def client(self, site: str, certificate_of: str, **extra: str) -> SiteClient:
        key = load_key(self.lab.path / site / "site.key")
        context = client_context(self.lab.path / certificate_of, self.lab.kit / "ca.crt")
        return SiteClient(site, self.port, key, context, public_pem(key.public_key()), extra)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    with lab(folder, options=("--tls-ended-by-proxy",)) as made:
        port = free_port()
        assert server.gateway.serve.__doc__
        settings = server.gateway.serve.__doc__.split("For nginx::")[1]
        settings = settings.replace("127.0.0.1:9444", f"127.0.0.1:{made.port}").replace("9443", f"127.0.0.1:{port}")
        for name in ("server.crt", "server.key", "ca.crt", "ca.crl"):
            settings = settings.replace(f" {name};", f" {made.kit / name};")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        text = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err; events {{}}"
        (folder / "nginx.conf").write_text(f"{text} http {{ access_log off; {places} {settings} }}")
        process = subprocess.Popen([str(NGINX), "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        try:
            wait_for(lambda: _answers(port), "nginx")
            yield Front(made, port)
        finally:
            process.terminate()
            process.wait(20)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_files_go_both_ways(front: Front) -> None:
    content = os.urandom(3_000_000)
    task = front.lab.open_task(model=content, offset=9, update_bytes=len(content))
    north, digest = front.client("north", "north"), digest_of(content)
    assert north.request("GET", f"/models/{task.model}").body == content
    assert north.upload(digest, content[:1_000_000], length=len(content)).status == 202
    assert north.upload(digest, content[1_000_000:], 1_000_000).status == 201


def test_the_name_is_the_certificates_whatever_a_site_says(front: Front) -> None:
    path = f"/models/{front.lab.open_task().model}"
    assert front.client("north", "north").request("GET", path).status == 200
    for extra in ({}, {"fedvox-client-name": "north"}):
        found = front.client("north", "south", **extra).request("GET", path)
        assert (found.status, found.word) == (401, "certificate")


def test_without_a_certificate_the_gateway_is_not_reached(front: Front) -> None:
    stranger = replace(front.client("north", "north"), context=client_context(None, front.lab.kit / "ca.crt"))
    assert stranger.request("GET", f"/models/{front.lab.open_task().model}").status == 400
