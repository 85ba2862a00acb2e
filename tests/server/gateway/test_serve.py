"""The gateway's start and end: what it cannot use is named in a line, and it leaves within seconds."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from common.config.network import parse_listen
from common.errors import FedvoxError
from common.identity import PROBE_PATH
from server.gateway.__main__ import main
from server.gateway.listen import Listen
from server.gateway.serve import GatewayOptions, _server, serve
from server.provisioning.certificate_authority import Authority
from server.run_store.gateway_folder import GatewayFolder
from tests.mutual_tls import write_server
from tests.server.gateway.lab import ABSENT, Lab, SiteClient, lab

PATH = f"/models/{ABSENT}"


def fails(made: Lab, listen: str = "", behind_proxy: bool = False) -> str:
    """Why a gateway does not start."""
    address = Listen(*parse_listen("--listen", listen or f"127.0.0.1:{made.port}", "1.2.3.4:1"))
    with pytest.raises(FedvoxError) as caught:
        serve(GatewayOptions(made.kit, made.run, address, behind_proxy))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def made(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_what_is_wrong_is_said_in_a_line(made: Lab) -> None:
    with socket.create_server(("127.0.0.1", made.port)):
        done = subprocess.run(made.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"server.gateway: cannot listen on 127.0.0.1:{made.port}: Address already in use; stop the program that uses "
        "it, or change --listen\n"
    )


def test_what_a_restart_cannot_help_has_an_exit_status_of_its_own(made: Lab) -> None:
    (made.kit / "server.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    done = subprocess.run(made.command(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "server.key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_another_gateway_has(gateway: Lab, made: Lab) -> None:
    made.port = gateway.port
    assert f"cannot listen on 127.0.0.1:{made.port}" in fails(made), "though Granian itself would share it"


def test_a_run_that_another_gateway_serves(gateway: Lab, made: Lab) -> None:
    made.run = gateway.run
    assert "another gateway serves this run" in fails(made)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key", "ca.crl"])
def test_a_file_of_the_kit_that_is_missing_or_damaged(made: Lab, name: str) -> None:
    (made.kit / name).write_bytes(b"nothing")
    assert name in fails(made)
    (made.kit / name).unlink()
    assert name in fails(made)


def test_a_key_that_does_not_belong_to_the_certificate(made: Lab, tmp_path: Path) -> None:
    write_server(tmp_path / "other", made.authority)
    (made.kit / "server.key").write_bytes((tmp_path / "other/server.key").read_bytes())
    assert "do not belong together" in fails(made)


def test_an_authority_that_did_not_sign_the_certificate(made: Lab) -> None:
    (made.kit / "ca.crt").write_bytes(Authority.create("tiny").pem)
    assert "was not signed by the authority" in fails(made)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "[::]"])  # noqa: S104 -- to be refused
def test_plain_http_is_not_for_everybody(made: Lab, host: str) -> None:
    assert "only the proxy reaches" in fails(made, f"{host}:{made.port}", behind_proxy=True)


def test_an_address_of_another_machine(made: Lab) -> None:
    assert "cannot listen on 192.0.2.1:" in fails(made, f"192.0.2.1:{made.port}")


@pytest.mark.parametrize("listen", ["localhost:1", "9443", "127.0.0.1:x"])
def test_an_address_that_is_none(made: Lab, listen: str) -> None:
    assert main(["--kit", str(made.kit), "--run", str(made.run), "--listen", listen]) == 2


def test_a_run_folder_that_cannot_be_written(made: Lab) -> None:
    GatewayFolder(made.run).remove()
    (made.run / "gateway").write_text("")
    assert "cannot be written" in fails(made)


def test_granian_is_made_to_ask_for_certificates(made: Lab) -> None:
    """It drops the wish without a word where it has no authority."""

    async def says_no(_: object, exchange: object) -> None:
        return

    options = GatewayOptions(made.kit, made.run, Listen("127.0.0.1", made.port))
    is_on, *_, authority, revocations, is_verified = _server(options, says_no).ssl_ctx  # type: ignore[arg-type]
    assert (is_on, authority, is_verified) == (True, str(made.kit / "ca.crt"), True)
    assert revocations == [str(made.kit / "ca.crl")]


def test_it_says_who_it_is(gateway: Lab) -> None:
    content = json.loads((gateway.folder.path / "gateway.json").read_bytes())
    assert gateway.process is not None
    assert content["pid"] == gateway.process.pid
    assert content["listen"] == f"127.0.0.1:{gateway.port}"
    assert abs(content["since"] - time.time()) < 600


def stalled(client: SiteClient) -> list[socket.socket]:
    """Connections that would last: nothing, half a head, half a body."""
    found = [client.socket() for _ in range(3)]
    found[1].sendall(b"GET / HTTP/1.1\r\n")
    lines = "".join(f"{name}: {value}\r\n" for name, value in client.signed("POST", "/heartbeat").items())
    found[2].sendall(f"POST /heartbeat HTTP/1.1\r\nhost: x\r\n{lines}content-length: 5\r\n\r\nx".encode())
    return found


def test_it_ends_within_seconds_whoever_is_connected(tmp_path: Path) -> None:
    with lab(tmp_path) as made:
        connections = stalled(made.client())
        assert made.client().request("GET", PATH).status == 404
        made.client().request("GET", "/nothing")
        assert made.client().request("GET", PROBE_PATH).status == 404
        assert made.process is not None
        began = time.monotonic()
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(20) == 0
        assert time.monotonic() - began < 5
        assert made.refused("north", "path") == 1, "the last counts are saved"
        assert made.refused("north", "model") == 1, "but a site that asks whether it is accepted was not refused"
        assert "Traceback" not in made.log()
        for connection in connections:
            connection.close()
        made.start()
        assert made.client().request("GET", PATH).status == 404, "its port is free at once"


def test_a_run_folder_that_is_removed_ends_nothing(tmp_path: Path) -> None:
    """As ``start`` does at the end of a run."""
    with lab(tmp_path) as made:
        assert made.client().request("GET", "/nothing").status == 404
        made.folder.remove()
        assert made.client().request("GET", PATH).status == 404
        assert made.client().request("GET", "/nothing").status == 404
        time.sleep(1.2)
        assert "Traceback" not in made.log()
