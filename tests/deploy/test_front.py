"""The examples of a front of one's own: sites take part through each of them, and strangers through none."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from client.courier.connection import client_context
from common.certificates import load_key
from common.identity import sign
from common.system.supervisor import answers, free_port
from server.provisioning.certificate_authority import Authority
from tests.deploy.tools import DEPLOY, cannot_run, program, said
from tests.e2e.network_federation import SERVER, Federation, assert_same_model, federation, simulated, wait_for
from tests.mutual_tls import write_server, write_site

pytestmark = pytest.mark.deploy

SITES = ("east", "north")
SETTINGS = ("rounds=1",)
GATEWAY, SITES_PORT, KIT = "127.0.0.1:9444", "9443", "/etc/fedvox/server/"
"""As they stand in the examples."""
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NOBODY_HAS = f"/models/{'0' * 64}"
PATIENCE_SECONDS = 300


def configured(example: str, folder: Path, port: int, gateway: int, kit: Path) -> Path:
    """An example with the ports and the kit of a test, and nothing else changed."""
    text = (DEPLOY / "front" / example).read_text(encoding="utf-8")
    assert GATEWAY in text and SITES_PORT in text
    text = text.replace(GATEWAY, f"127.0.0.1:{gateway}").replace(KIT, f"{kit}/").replace(SITES_PORT, str(port))
    file = folder / example
    file.write_text(text, encoding="utf-8")
    return file


def command(file: Path) -> list[str]:
    """What runs a front in the foreground, with its files in a folder of the test."""
    if file.suffix == ".cfg":
        return [program("haproxy", "haproxy"), "-db", "-f", str(file)]
    if "stream {" in file.read_text(encoding="utf-8") and not STREAM_MODULE.exists():
        cannot_run("nginx has no stream module here (libnginx-mod-stream)")
    places = [
        f"{name}_temp_path {file.parent}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ]
    text = file.read_text(encoding="utf-8").replace("http {\n", "http {\n" + "\n".join(places) + "\n")
    file.write_text(text, encoding="utf-8")
    return [program("nginx", "nginx"), "-c", str(file), "-e", "stderr", "-g", f"daemon off; pid {file.parent}/pid;"]


@contextmanager
def front(example: str, folder: Path, made: Federation, gateway: int) -> Iterator[None]:
    """A front at the federation's port, before a gateway at another one."""
    file = configured(example, folder, made.port, gateway, made.kits / "server")
    with (folder / "front.log").open("wb") as log:
        process = subprocess.Popen(command(file), stdout=log, stderr=log)
        try:
            wait_for(lambda: answers(made.port), 30, (folder / "front.log").read_text())
            yield
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def federation_behind(example: str, folder: Path) -> Iterator[Federation]:
    """A server that waits for sites, behind a front as the example's first lines say."""
    with federation(folder, SITES, SETTINGS) as made:
        gateway = free_port()
        kit, place = ["--kit", str(made.kits / "server")], ["--listen", f"127.0.0.1:{gateway}"]
        if example == "nginx-tls.conf":
            made._start("server", [*SERVER, "start", *kit, "--without-gateway"])
            plain = ["--run", str(made.run), "--tls-ended-by-proxy", "--linger", "1"]
            wait_for(made.run.exists, PATIENCE_SECONDS, "the run folder")
            made._start("gateway", [*SERVER, "gateway", *kit, *place, *plain])
        else:
            made._start("server", [*SERVER, "start", *kit, *place])
        wait_for(lambda: answers(gateway), PATIENCE_SECONDS, "the gateway")
        with front(example, folder, made, gateway):
            wait_for(made.is_up, PATIENCE_SECONDS, "a server that waits for sites")
            yield made


def ask(made: Federation, kit: Path, site: str, **headers: str) -> int:
    """The status of a request of a site's for what nobody has; 404 if it is let in."""
    own = headers | sign(load_key(kit / "site.key"), site, "GET", NOBODY_HAS, sha256(b"").hexdigest(), {})
    connection = http.client.HTTPSConnection("127.0.0.1", made.port, context=client_context(kit), timeout=20)
    try:
        connection.request("GET", NOBODY_HAS, headers=own)
        return connection.getresponse().status
    finally:
        connection.close()


def is_shut_out(made: Federation, context: ssl.SSLContext) -> bool:
    """Whether the other end hangs up before it answers anything."""
    try:
        with (
            socket.create_connection(("127.0.0.1", made.port), 20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(f"GET {NOBODY_HAS} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            return connection.recv(100) == b""
    except (ssl.SSLError, ConnectionError):
        return True


EXAMPLES = sorted(path.name for path in (DEPLOY / "front").iterdir())


QUICK = "nginx-tls.conf"
"""The example that has most of our own in it; the others take as long, and need a minute each."""


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in EXAMPLES]
)
def test_a_federation_behind_a_front_ends_with_the_model_of_a_simulation(example: str, tmp_path: Path) -> None:
    with federation_behind(example, tmp_path) as made:
        kit = made.kits / "sites" / "east"
        assert ask(made, kit, "east") == 404, "let in"
        assert ask(made, kit, "north") == 401, "signed in another's name"
        # Whose certificate it was is the front's to say, and not a site's.
        assert ask(made, kit, "east", **{"fedvox-client-name": "north"}) == 404
        nobody = ssl.create_default_context(cafile=kit / "ca.crt")
        assert is_shut_out(made, nobody), "without a certificate"
        stranger = write_site(tmp_path / "stranger", Authority.create("other"), "east")
        nobody.load_cert_chain(stranger / "site.crt", stranger / "site.key")
        assert is_shut_out(made, nobody), "a certificate of another authority"
        for site in SITES:
            made.start_site(site)
        made.finish(PATIENCE_SECONDS)
        assert [line["sites"].keys() for line in made.rounds()] == [set(SITES)] * 2
        assert_same_model(made.run, simulated(made, tmp_path / "simulated").path, 1)


@pytest.mark.slow
def test_a_gateway_behind_a_front_that_ends_tls_believes_the_front_alone(tmp_path: Path) -> None:
    with federation_behind("nginx-tls.conf", tmp_path) as made:
        # The key of one site with the certificate of another: the handshake shows the second, the signature the first.
        context, key = client_context(made.kits / "sites/north"), load_key(made.kits / "sites/east/site.key")
        headers = sign(key, "east", "GET", NOBODY_HAS, sha256(b"").hexdigest(), {})
        connection = http.client.HTTPSConnection("127.0.0.1", made.port, context=context, timeout=20)
        connection.request("GET", NOBODY_HAS, headers=headers)
        assert connection.getresponse().status == 401
        connection.close()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_mistyped_front_is_found(example: str, tmp_path: Path) -> None:
    kit = write_server(tmp_path / "kit", Authority.create("heart"))
    file = configured(example, tmp_path, free_port(), free_port(), kit)
    check = [*command(file), "-t"] if file.suffix == ".conf" else [program("haproxy", "haproxy"), "-c", "-f", str(file)]
    assert said(*check)[0] == 0, said(*check)
    file.write_text(file.read_text(encoding="utf-8").replace("timeout", "time_out"), encoding="utf-8")
    assert said(*check)[0] != 0
