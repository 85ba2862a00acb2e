"""What is looked at before a site joins: one line per item, and each can fail by itself.

A problem that only the hospital or the coordinator can solve stops the start; what may pass by itself (a server that
does not answer now) or takes effect later (an approval) is a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

from client import gpu
from client.gpu import Severity
from client.request import KEY_FILE
from client.site_state import read_json, write_json
from common.config import FederationConfig
from common.errors import DataError, FedvoxError, OutputError
from common.flower import check_flower_version
from common.network_config import Kit
from common.text import counted

CONNECT_SECONDS = 5.0
CLOCK_AHEAD_SECONDS = 4.0
"""The server refuses what was signed more than 5 s in its own future; HTTP tells it in whole seconds."""
CLOCK_BEHIND_WARNING_SECONDS = 30.0
CLOCK_BEHIND_ERROR_SECONDS = 150.0
"""The server refuses what was signed about 300 s ago."""
RENEW_DAYS = 14
DISK_BYTES = 2**30
SECRET_BYTES = 16
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's and AMD's drivers, and of Windows' for Linux; without any of them PyTorch finds no GPU."""
_VERIFY_EXPIRED, _VERIFY_NOT_YET_VALID = 10, 9
_VERIFY_WRONG_NAME, _VERIFY_WRONG_ADDRESS = 62, 64


@dataclass(frozen=True)
class Item:
    """One thing that was looked at. ``text`` says what was found and, if it is not good, what to do."""

    name: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.name + ':':<13} {self.text}"


@dataclass(frozen=True)
class Connection:
    """What a TLS handshake with the server showed.

    clock: the server's time minus ours, in seconds; None if it does not tell.
    """

    not_after: datetime
    clock: float | None


class HandshakeError(FedvoxError):
    """The server's certificate is not accepted."""


def check_version() -> Item:
    """The version of Flower."""
    try:
        check_flower_version()
    except FedvoxError as error:
        return Item("software", "error", str(error))
    return Item("software", "ok", "the version of Flower is the one that is needed")


def check_kit(folder: Path, kit: Kit, config: FederationConfig) -> Item:
    """Whether the kit is whole, and its key for its owner's eyes only."""
    key = folder / KEY_FILE
    found = check_federation(folder, kit, config)
    if found.severity == "error":
        return found
    if not key.exists():
        return Item("kit", "error", f"{key} is missing; copy the key that fedvox-client request made to this place")
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        return Item("kit", "error", f"{key} can be read by others (mode {mode:o}); do: chmod 600 {key}")
    return found


def check_federation(folder: Path, kit: Kit, config: FederationConfig) -> Item:
    """Whether the kit is for the federation that it says, whoever holds its key."""
    if config.digest() != kit.digest:
        return Item("kit", "error", f"{folder / 'federation.yaml'} was changed; ask the coordinator for a new kit")
    return Item("kit", "ok", f"site {kit.site} of {kit.federation}, server {kit.endpoint}")


def check_no_key(folder: Path) -> Item:
    """Whether the key is out of the reach of the process that sees the scans."""
    key = folder / KEY_FILE
    if os.access(key, os.R_OK):
        return Item("key", "warning", f"{key} can be read here; where SuperNode runs apart it should be its alone")
    return Item("key", "ok", "is not here; SuperNode has it")


def check_secret(file: Path) -> Item:
    """Whether SuperNode and runner have a secret by which they know each other."""
    advice = f"make one that both are given: head -c 32 /dev/urandom > {file}"
    try:
        size = len(file.read_bytes())
    except OSError as error:
        return Item("secret", "error", f"{file}: cannot be read ({error.strerror}); {advice}")
    if size < SECRET_BYTES:
        return Item("secret", "error", f"{file}: has {size} bytes, {SECRET_BYTES} are the least; {advice}")
    return Item("secret", "ok", "is there")


def check_authority(file: Path, now: datetime) -> Item:
    """The dates of the federation's own certificate authority, as it lies in the kit."""
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError):
        return Item("authority", "error", f"{file} is missing or damaged; ask the coordinator for a new kit")
    return _judge_dates("authority", certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)


def connect(address: str, port: int, authority: Path, timeout: float) -> Connection:
    """Shakes hands with the server, and asks it for the time.

    Raises:
        HandshakeError: the server's certificate is not accepted; the text says why.
        OSError: nobody answers.
    """
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection((address, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=address) as secure,
        ):
            certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            secure.sendall(f"HEAD / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            date = _date_in(_read_head(secure))
    except ssl.SSLCertVerificationError as error:
        raise HandshakeError(_why_not_accepted(error)) from None
    clock = (date - datetime.now(UTC)).total_seconds() if date else None
    return Connection(certificate.not_valid_after_utc, clock)


def check_server(kit: Kit, authority: Path, timeout: float = CONNECT_SECONDS) -> Iterator[Item]:
    """Whether the server can be reached, whether it is the right one, and whether both clocks agree."""
    try:
        found = connect(kit.address, kit.port, authority, timeout)
    except HandshakeError as error:
        yield Item("certificate", "error", str(error))
        return
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        # As a proxy on the way does while the server behind it is being started.
        text = f"{kit.endpoint} hangs up; look at firewall and proxy. It is tried again and again"
        yield Item("server", "warning", text)
        return
    except ssl.SSLError as error:
        yield Item("server", "error", f"{kit.endpoint} does not speak TLS ({error.reason}); is the port right?")
        return
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        text = f"{kit.endpoint} cannot be reached ({reason}); look at firewall and proxy. It is tried again and again"
        yield Item("server", "warning", text)
        return
    yield Item("server", "ok", f"{kit.endpoint} answers over TLS")
    yield _judge_dates("certificate", None, found.not_after, datetime.now(UTC))
    yield judge_clock(found.clock)


def judge_clock(difference: float | None) -> Item:
    """What the difference between the server's clock and ours means (seconds, the server's minus ours)."""
    if difference is None:
        return Item("clock", "warning", "the server does not tell the time; see that this clock is right")
    text = f"{abs(difference):.0f} s {'behind' if difference > 0 else 'ahead of'} the server's"
    if difference <= -CLOCK_AHEAD_SECONDS or difference >= CLOCK_BEHIND_ERROR_SECONDS:
        return Item("clock", "error", f"{text}; the server would refuse this site: set the clock (NTP)")
    if difference >= CLOCK_BEHIND_WARNING_SECONDS:
        return Item("clock", "warning", f"{text}; set the clock (NTP)")
    return Item("clock", "ok", "agrees with the server's")


def check_data(
    root: Path, labels: Mapping[int, str], memory: Path, progress: Callable[[int, int], None] | None = None
) -> Item:
    """Reads every case, unless nothing has changed since it was last found good.

    Args:
        root: the dataset folder.
        labels: of the federation.
        memory: file that remembers a good result.
        progress: called with (cases read, all cases).
    """
    from client.check import check_dataset

    state = _state_of_files(root, labels)
    remembered = read_json(memory)
    if remembered.get("state") == state:
        return Item("data", "ok", f"{remembered.get('text')}; unchanged since it was checked")
    try:
        report = check_dataset(root, labels, progress)
    except DataError as error:
        return Item("data", "error", str(error))
    if not report.usable:
        first = next(problem for problem in report.problems if problem.severity == "error")
        count = sum(problem.severity == "error" for problem in report.problems)
        more = f" (and {count - 1} more; fedvox-client check lists them all)" if count > 1 else ""
        return Item("data", "error", f"{first.path}: {first.text}{more}")
    text = counted(len(report.cases), "case")
    with contextlib.suppress(OutputError):  # it is read again next time; a full disk is an item of its own
        write_json(memory, {"state": state, "text": text})
    return Item("data", "ok", text)


def check_disk(folders: Mapping[str, Path], needed: int = DISK_BYTES) -> Item:
    """Whether there is room; what a folder that does not exist yet has is that of the one above it."""
    free = {what: shutil.disk_usage(_existing(folder)).free for what, folder in folders.items()}
    for what, size in free.items():
        if size < needed:
            text = f"{size / 2**30:.1f} GiB free for the {what} ({folders[what]}), {needed / 2**30:.1f} are needed"
            return Item("disk", "error", text)
    return Item("disk", "ok", f"{min(free.values()) / 2**30:.0f} GiB free")


def check_device(name: str) -> Item:
    """What will compute."""
    is_there = any(Path(device).exists() for device in _GPU_DEVICES)
    if name == "cpu" or (name == "auto" and not is_there):
        # Told without PyTorch, which takes seconds to import.
        return Item("device", "ok", f"no GPU is used; {gpu.without_gpu()}")
    return Item("device", *gpu.ask(name))


def check_approval(state: Path, config: FederationConfig) -> Item:
    """Whether a task would be done at this moment."""
    from client.policy import Policy, PolicyError
    from common.site_config import SITE_FILE

    try:
        Policy(state, config, state / SITE_FILE).check(config.digest())
    except PolicyError as error:
        return Item("approval", "warning", f"no task will be done: {error}")
    return Item("approval", "ok", "tasks of this federation are done")


def _judge_dates(name: str, not_before: datetime | None, not_after: datetime, now: datetime) -> Item:
    if not_before is not None and now < not_before:
        return Item(name, "error", f"is valid from {not_before:%Y-%m-%d %H:%M} UTC only; is this clock right?")
    if now >= not_after:
        return Item(name, "error", f"has expired on {not_after:%Y-%m-%d}; ask the coordinator for a new kit")
    left = not_after - now
    if left < timedelta(days=RENEW_DAYS):
        return Item(name, "warning", f"expires on {not_after:%Y-%m-%d}, in {left.days} days; tell the coordinator")
    return Item(name, "ok", f"valid until {not_after:%Y-%m-%d}")


def _why_not_accepted(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _VERIFY_EXPIRED:
        return "the server's certificate has expired, or this clock is wrong; the coordinator can renew it"
    if error.verify_code == _VERIFY_NOT_YET_VALID:
        return "the server's certificate is not valid yet; is this clock right?"
    if error.verify_code in (_VERIFY_WRONG_NAME, _VERIFY_WRONG_ADDRESS):
        return "the server's certificate is for another address than the kit's; ask the coordinator"
    return (
        "the server is not the one that this kit was made for (another authority signed its certificate), or "
        "something between reads the traffic; ask the coordinator"
    )


def _read_head(secure: ssl.SSLSocket) -> bytes:
    head = b""
    try:
        while b"\r\n\r\n" not in head and len(head) < 2**16 and (part := secure.recv(4096)):
            head += part
    except OSError:
        pass
    return head


def _date_in(head: bytes) -> datetime | None:
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            try:
                return parsedate_to_datetime(value.strip()).astimezone(UTC)
            except ValueError:
                return None
    return None


def _state_of_files(root: Path, labels: Mapping[int, str]) -> str:
    total = hashlib.sha256(json.dumps(sorted(labels.items())).encode())
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        if path.is_file():
            info = path.stat()
            total.update(f"{path.relative_to(root)}/{info.st_size}/{info.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
