"""Preflight: what is checked before a site joins, one line per item; each can fail by itself.

A problem that only the hospital or the coordinator can solve stops the start; what may pass by itself (a server that
does not answer now) or takes effect later (an approval) is a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from client.courier.proxy import ProxyError
from client.shared_folder import SharedFolder, SharedFolderError
from client.site import gpu_probe
from client.site.preflight_item import Item
from client.site.server_probe import CertificateRefusedError, Connection, HandshakeError, connect, unreachable
from client.site.signing_request import KEY_FILE
from client.state_folder import read_json, write_json
from common.certificates import SITE_CERTIFICATE_FILE, CertificateError, load_certificate, site_identity
from common.config.federation import FederationConfig
from common.config.kit import Kit
from common.errors import ConfigError, DataError, FedvoxError, OutputError
from common.formatting import counted
from common.system.flower import check_flower_version

CONNECT_SECONDS = 5.0
CLOCK_AHEAD_SECONDS = 4.0
"""The server refuses what was signed more than 5 s in its own future; HTTP tells it in whole seconds."""
CLOCK_BEHIND_WARNING_SECONDS = 30.0
CLOCK_BEHIND_ERROR_SECONDS = 150.0
"""The server refuses what was signed about 300 s ago."""
RENEW_DAYS = 14
DISK_BYTES = 2**30
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Of NVIDIA's and AMD's drivers, and of Windows' for Linux; without any of them PyTorch finds no GPU."""
_UNAUTHORISED = 401


def check_version() -> Item:
    """The version of Flower."""
    try:
        check_flower_version()
    except FedvoxError as error:
        return Item("software", "error", str(error))
    return Item("software", "ok", "the version of Flower is the one that is needed")


def check_kit(folder: Path, kit: Kit, config: FederationConfig) -> Item:
    """Whether the kit is whole, its key and certificate belong together, and the key is for its owner's eyes only."""
    found = check_federation(folder, kit, config)
    if found.severity == "error":
        return found
    try:
        identity = site_identity(folder, kit.site or "")
    except CertificateError as error:
        return Item("kit", "error", str(error))
    key = folder / KEY_FILE
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        return Item("kit", "error", f"{key} can be read by others (mode {mode:o}); do: chmod 600 {key}")
    dates = _judge_dates("kit", None, identity.certificate.not_valid_after_utc, datetime.now(UTC))
    if dates.severity != "ok":
        return Item("kit", dates.severity, f"{folder / SITE_CERTIFICATE_FILE}: {dates.text}")
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
        return Item("key", "warning", f"{key} can be read here; where the courier runs apart, only it needs the key")
    return Item("key", "ok", "not here; the courier has it")


def check_shared(folder: Path, half: Literal["courier", "runner"] = "runner") -> Item:
    """Whether a site's two halves can exchange files in a folder, and this half is the only one of its kind there."""
    shared = SharedFolder(folder)
    try:
        shared.make()
        shared.probe()
        with shared.held_by(half):
            pass
    except SharedFolderError as error:
        return Item("shared", "error", str(error))
    return Item("shared", "ok", "courier and runner can exchange files")


def check_isolation(can_isolate: bool) -> Item:
    """Whether the runner, which sees the scans, will be without a network.

    Parameters
    ----------
    can_isolate
        what ``client.runner.isolation.can_isolate`` found.
    """
    if can_isolate:
        return Item("isolation", "ok", "the runner, which sees the scans, has no network")
    advice = "run it in a container without one (deploy/site), or let the kernel allow unprivileged user namespaces"
    return Item("isolation", "warning", f"the runner, which sees the scans, has this machine's network; {advice}")


def check_authority(file: Path, now: datetime) -> Item:
    """The dates of the federation's own certificate authority, as it lies in the kit."""
    try:
        certificate = load_certificate(file)
    except CertificateError as error:
        return Item("authority", "error", str(error))
    return _judge_dates("authority", certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)


def check_server(folder: Path, kit: Kit, timeout: float = CONNECT_SECONDS) -> Iterator[Item]:
    """Whether the server can be reached, is the right one and lets this site in, and whether both clocks agree.

    Parameters
    ----------
    folder
        the site's kit; the connection uses its certificate and key, and the proxy of ``HTTPS_PROXY``.
    kit
        its content.
    timeout
        seconds for each step.
    """
    try:
        found = connect(folder, kit, timeout)
    except CertificateError:
        yield Item("server", "error", "not asked, because the kit's key or certificate cannot be used")
    except (HandshakeError, CertificateRefusedError) as error:
        yield Item("certificate", "error", str(error))
    except ConfigError as error:
        yield Item("proxy", "error", str(error))
    except ProxyError as error:
        yield Item("proxy", "error" if error.needs_person else "warning", str(error))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError):
        # As a front on the way does while the server behind it is being started.
        text = f"{kit.endpoint} hangs up; look at firewall and proxy. It is tried again and again"
        yield Item("server", "warning", text)
    except ssl.SSLError as error:
        yield Item("server", "error", f"{kit.endpoint} does not speak TLS ({error.reason}); is the port right?")
    except OSError as error:
        reason = unreachable(error)
        text = f"{kit.endpoint} cannot be reached ({reason}); look at firewall and proxy. It is tried again and again"
        yield Item("server", "warning", text)
    else:
        by_way_of = f", through the proxy {found.proxy}" if found.proxy else ""
        yield Item("server", "ok", f"{kit.endpoint} answers over TLS{by_way_of}")
        yield _judge_dates("certificate", None, found.not_after, datetime.now(UTC))
        yield judge_clock(found.clock)
        yield _judge_access(found)


def _judge_access(found: Connection) -> Item:
    if found.status == _UNAUTHORISED:
        reasons = {
            "unknown-site": "the server does not let this site in; ask the coordinator whether it was revoked",
            "clock": "the server refuses this site for its clock; set the clock (NTP)",
        }
        text = reasons.get(found.word, "the server does not accept this site's key; ask the coordinator for a new kit")
        return Item("access", "error", text)
    if found.status == 0 or found.status >= 500:
        return Item("access", "warning", "the server is not ready; it is tried again and again")
    return Item("access", "ok", "the server lets this site in")


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

    Parameters
    ----------
    root
        the dataset folder.
    labels
        of the federation.
    memory
        file that remembers a good result.
    progress
        called with (cases read, all cases).
    """
    from client.data.dataset_check import check_dataset

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
        return Item("device", "ok", f"no GPU is used; {gpu_probe.without_gpu()}")
    return Item("device", *gpu_probe.ask(name))


def check_approval(state: Path, config: FederationConfig) -> Item:
    """Whether a task would be done at this moment."""
    from client.consent.policy import Policy, PolicyError
    from client.consent.site_config import SITE_FILE

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
