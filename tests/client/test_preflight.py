"""Every item of the preflight, good and bad, against real TLS servers."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client import gpu, preflight
from client.preflight import (
    Item,
    check_authority,
    check_data,
    check_device,
    check_disk,
    check_federation,
    check_kit,
    check_no_key,
    check_secret,
    check_server,
    judge_clock,
)
from client.request import make_request
from common.config import FederationConfig
from common.network_config import Kit
from common.phantom import write_phantom_dataset
from common.supervise import free_port
from tests import tiny

LABELS = {1: "body", 2: "core", 3: "vessel"}


class Authority:
    """Signs certificates with any dates and addresses."""

    def __init__(self, folder: Path, days: int = 365) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.file = folder / "ca.crt"
        signed = self._sign(self.name, self.key.public_key(), -400, days, x509.BasicConstraints(True, 0))
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def server(self, first_day: int = -1, last_day: int = 90, address: str = "127.0.0.1") -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        addresses = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        certificate = self._sign(name, key.public_key(), first_day, last_day, addresses)
        file = self.folder / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, first: int, last: int, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).add_extension(extension, critical=False)
        if isinstance(extension, x509.BasicConstraints):
            builder = builder.add_extension(usage, critical=True)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        builder = builder.not_valid_before(now + timedelta(days=first)).not_valid_after(now + timedelta(days=last))
        return builder.sign(self.key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@contextmanager
def serving(context: ssl.SSLContext | None, clock: timedelta | None = timedelta(0)) -> Iterator[Kit]:
    """An HTTPS server whose clock differs; None sends no date."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            if clock is not None:
                self.send_header("Date", self.date_time_string((datetime.now(UTC) + clock).timestamp()))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield kit(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kit(port: int = 1, digest: str = "0" * 64) -> Kit:
    return Kit(role="site", federation="tiny", digest=digest, address="127.0.0.1", port=port, site="north")


def found(site_kit: Kit, file: Path) -> dict[str, Item]:
    return {item.name: item for item in check_server(site_kit, file)}


def test_a_good_server_gives_three_good_lines(authority: Authority) -> None:
    with serving(authority.server()) as site_kit:
        items = found(site_kit, authority.file)
    assert list(items) == ["server", "certificate", "clock"]
    assert {item.severity for item in items.values()} == {"ok"}


def test_a_server_that_is_not_there_is_a_warning_for_it_may_come(authority: Authority) -> None:
    items = found(kit(free_port()), authority.file)
    assert items["server"].severity == "warning"
    assert "cannot be reached" in items["server"].text


def test_a_server_that_accepts_and_says_nothing_is_a_warning(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        [item] = check_server(kit(silent.getsockname()[1]), authority.file, timeout=0.2)
    assert item.severity == "warning" and "no answer" in item.text


def test_a_proxy_that_hangs_up_is_a_warning_for_the_server_behind_it_may_be_starting(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:

        def hang_up() -> None:
            connection, _ = hanging_up.accept()
            connection.recv(1)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        [item] = check_server(kit(hanging_up.getsockname()[1]), authority.file)
        thread.join()
    assert item.severity == "warning"
    assert "hangs up" in item.text


def test_something_without_tls_is_an_error(authority: Authority) -> None:
    with serving(None) as site_kit:
        items = found(site_kit, authority.file)
    assert items["server"].severity == "error"
    assert "does not speak TLS" in items["server"].text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"first_day": -90, "last_day": -1}, "has expired"),
        ({"first_day": 2, "last_day": 90}, "not valid yet"),
        ({"address": "127.0.0.2"}, "for another address"),
    ],
)
def test_a_bad_certificate_is_an_error_that_says_why(
    authority: Authority, options: dict[str, object], text: str
) -> None:
    with serving(authority.server(**options)) as site_kit:  # type: ignore[arg-type]
        items = found(site_kit, authority.file)
    assert list(items) == ["certificate"]
    assert items["certificate"].severity == "error"
    assert text in items["certificate"].text


def test_a_server_of_another_authority_is_an_error(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with serving(other.server()) as site_kit:
        items = found(site_kit, authority.file)
    assert items["certificate"].severity == "error"
    assert "not the one that this kit was made for" in items["certificate"].text


def test_a_certificate_that_expires_soon_is_a_warning(authority: Authority) -> None:
    with serving(authority.server(last_day=5)) as site_kit:
        assert found(site_kit, authority.file)["certificate"].severity == "warning"


@pytest.mark.parametrize(
    ("seconds", "severity", "side"), [(-600, "error", "ahead of"), (600, "error", "behind"), (60, "warning", "behind")]
)
def test_a_wrong_clock_is_noticed(authority: Authority, seconds: int, severity: str, side: str) -> None:
    with serving(authority.server(), timedelta(seconds=seconds)) as site_kit:
        item = found(site_kit, authority.file)["clock"]
    assert item.severity == severity
    told, _, rest = item.text.partition(" s ")
    assert rest.startswith(side)
    assert abs(int(told) - abs(seconds)) <= 2, "HTTP tells whole seconds"


def test_a_server_that_does_not_tell_the_time_is_a_warning(authority: Authority) -> None:
    with serving(authority.server(), None) as site_kit:
        assert found(site_kit, authority.file)["clock"].severity == "warning"


def test_the_limits_of_the_clock() -> None:
    assert [judge_clock(value).severity for value in (29, 31, 149, 151, -3, -5, -151)] == [
        "ok", "warning", "warning", "error", "ok", "error", "error",
    ]  # fmt: skip


def test_the_dates_of_the_authority(tmp_path: Path) -> None:
    file = Authority(tmp_path / "authority", days=30).file
    now = datetime.now(UTC)
    severities = [check_authority(file, now + timedelta(days=days)).severity for days in (-500, 0, 20, 31)]
    assert severities == ["error", "ok", "warning", "error"]


def test_a_damaged_authority_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nonsense")
    assert check_authority(tmp_path / "ca.crt", datetime.now(UTC)).severity == "error"
    assert check_authority(tmp_path / "missing", datetime.now(UTC)).severity == "error"


def test_the_kit(tmp_path: Path) -> None:
    config = FederationConfig.model_validate({"name": "tiny", "rounds": 3})
    good = kit(digest=config.digest())
    assert "node.key is missing" in check_kit(tmp_path, good, config).text
    key = make_request("north", tmp_path).key
    assert check_kit(tmp_path, good, config).severity == "ok"
    assert "was changed" in check_kit(tmp_path, kit(), config).text
    key.chmod(0o644)
    item = check_kit(tmp_path, good, config)
    assert item.severity == "error" and "chmod 600" in item.text


def test_a_kit_without_its_key_is_enough_for_a_runner(tmp_path: Path) -> None:
    config = FederationConfig.model_validate({"name": "tiny", "rounds": 3})
    assert check_federation(tmp_path, kit(digest=config.digest()), config).severity == "ok"
    assert "was changed" in check_federation(tmp_path, kit(), config).text
    assert check_no_key(tmp_path).severity == "ok"
    make_request("north", tmp_path)
    assert check_no_key(tmp_path).severity == "warning"


def test_the_secret_of_supernode_and_runner(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    missing = check_secret(file)
    assert missing.severity == "error" and "/dev/urandom" in missing.text
    file.write_bytes(b"short")
    assert check_secret(file).severity == "error"
    file.write_bytes(bytes(range(32)))
    found = check_secret(file)
    assert found.severity == "ok" and "\x01" not in found.text


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [3], seed=0, shape=(32, 32, 32))


def test_good_data_are_read_once_and_again_when_they_change(scans: Path, tmp_path: Path) -> None:
    folder, memory = tmp_path / "scans", tmp_path / "memory.json"
    shutil.copytree(scans, folder)
    reads: list[int] = []

    def check() -> Item:
        return check_data(folder, LABELS, memory, lambda done, cases: reads.append(done))

    assert check().severity == "ok" and len(reads) == 3
    again = check()
    assert again.severity == "ok" and "unchanged" in again.text and len(reads) == 3
    assert check_data(folder, {1: "body"}, memory).severity == "error", "other labels are another question"
    image = next((folder / "imagesTr").glob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:100])
    broken = check()
    assert broken.severity == "error" and image.name in broken.text


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert check_data(tmp_path / "nowhere", LABELS, tmp_path / "memory.json").severity == "error"


def test_disk_space(tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "not" / "there" / "yet"}
    assert check_disk(folders, needed=1).severity == "ok"
    full = check_disk(folders, needed=2**60)
    assert full.severity == "error" and "are needed" in full.text


def test_device() -> None:
    import torch

    assert check_device("cpu").severity == "ok"
    assert check_device("cuda").severity == ("ok" if torch.cuda.is_available() else "error")


def test_a_gpu_that_pytorch_does_not_use_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path / "none"),))
    assert check_device("auto").severity == "ok"
    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path),))
    assert check_device("cpu").severity == "ok"
    if not torch.cuda.is_available():
        found = check_device("auto")
        assert (found.severity, "a GPU is there, but" in found.text) == ("warning", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cuda, text in ((None, "built without CUDA"), ("13.0", "finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        severity, said = gpu.look("auto")
        assert (severity, text in said) == ("warning", True)


def test_a_gpu_that_refuses_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def refuse() -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    severity, said = gpu.look("auto")
    assert (severity, "\n" in said) == ("error", False)
    assert "are busy or unavailable" in said


def test_a_gpu_whose_look_crashes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_GPU_DEVICES", (str(tmp_path),))
    # As a driver that does not fit can: the process ends without a word.
    (tmp_path / "torch.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    found = check_device("auto")
    assert (found.severity, "ended with 3" in found.text) == ("error", True)


def test_a_federation_that_nobody_approved_is_a_warning(tmp_path: Path) -> None:
    from client.approvals import DecisionBook

    config = tiny.federation()
    assert preflight.check_approval(tmp_path, config).severity == "warning"
    DecisionBook(tmp_path).approve(config.name, config.digest(), "Dr. Example")
    assert preflight.check_approval(tmp_path, config).severity == "ok"
    DecisionBook(tmp_path).pause("Dr. Example")
    assert "paused" in preflight.check_approval(tmp_path, config).text


def test_version() -> None:
    assert preflight.check_version().severity == "ok"
