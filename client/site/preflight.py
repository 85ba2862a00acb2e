"""Preflight: independent checks before a site joins, one line per item.

A problem that only the hospital or the coordinator can solve stops the start. One that may pass by itself (a server
that does not answer now) or takes effect later (an approval) is a warning.
"""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from client.courier.proxy import ProxyError
from client.shared_folder import SharedFolder, SharedFolderError
from client.site import gpu_probe
from client.site.preflight_item import Item
from client.site.server_probe import CertificateRefusedError, Connection, HandshakeError, connect, unreachable
from client.site.signing_request import KEY_FILE
from common.certificates import SITE_CERTIFICATE_FILE, CertificateError, load_certificate, site_identity
from common.config.federation import FederationConfig, load_federation
from common.config.kit import Kit, check_kit_files
from common.errors import ConfigError, FedvoxError
from common.plan.plan import Plan
from common.system.flower import check_flower_version
from common.system.memory import MemoryLimitError, require_memory

CONNECT_SECONDS = 5.0
CLOCK_AHEAD_SECONDS = 4.0
"""The server refuses requests signed more than 5 s in its future; HTTP dates have whole seconds."""
CLOCK_BEHIND_WARNING_SECONDS = 30.0
CLOCK_BEHIND_ERROR_SECONDS = 150.0
"""The server refuses requests signed more than 300 s ago."""
RENEW_DAYS = 14
DISK_BYTES = 2**30
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Devices of NVIDIA's, AMD's and WSL's drivers; without any of them PyTorch finds no GPU."""
_UNAUTHORISED = 401


def check_version() -> Item:
    """Check the version of Flower."""
    try:
        check_flower_version()
    except FedvoxError as error:
        return Item("software", "error", str(error))
    return Item("software", "ok", "Flower has the required version")


def check_kit(folder: Path, kit: Kit, config: FederationConfig) -> Item:
    """Check that the kit is complete, key and certificate match, and only the key's owner can read it."""
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
        return Item("kit", "error", f"{key} can be read by others (mode {mode:o}); run: chmod 600 {key}")
    dates = _check_dates("kit", None, identity.certificate.not_valid_after_utc, datetime.now(UTC))
    if dates.severity != "ok":
        return Item("kit", dates.severity, f"{folder / SITE_CERTIFICATE_FILE}: {dates.text}")
    return found


def check_federation(folder: Path, kit: Kit, config: FederationConfig) -> Item:
    """Check that the kit belongs to the federation that it names; needs no key."""
    if config.digest() != kit.digest:
        return Item("kit", "error", f"{folder / 'federation.yaml'} was changed; ask the coordinator for a new kit")
    try:
        check_kit_files(folder, kit)
    except FedvoxError as error:
        return Item("kit", "error", str(error))
    return Item("kit", "ok", f"site {kit.site} of {kit.federation}, server {kit.endpoint}")


def check_no_key(folder: Path) -> Item:
    """Check that the process that sees the scans cannot read the key."""
    key = folder / KEY_FILE
    if os.access(key, os.R_OK):
        return Item("key", "warning", f"{key} can be read here; with a separate courier, only that needs the key")
    return Item("key", "ok", "not here; the courier has it")


def check_shared(folder: Path, half: Literal["courier", "runner"] = "runner") -> Item:
    """Check that courier and runner can exchange files in a folder, and that no other ``half`` uses it."""
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
    """Check that the runner, which sees the scans, will have no network.

    Parameters
    ----------
    can_isolate
        Result of ``client.runner.isolation.can_isolate``.
    """
    if can_isolate:
        return Item("isolation", "ok", "the runner, which sees the scans, has no network")
    advice = "run it in a container without one (deploy/site), or allow unprivileged user namespaces in the kernel"
    return Item("isolation", "warning", f"the runner, which sees the scans, has this machine's network; {advice}")


def check_authority(file: Path, now: datetime) -> Item:
    """Check the validity dates of the kit's certificate authority."""
    try:
        certificate = load_certificate(file)
    except CertificateError as error:
        return Item("authority", "error", str(error))
    return _check_dates("authority", certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)


def check_server(folder: Path, kit: Kit, timeout: float = CONNECT_SECONDS) -> Iterator[Item]:
    """Check that the server is reachable and genuine, that it accepts this site, and that both clocks agree.

    Parameters
    ----------
    folder
        The site's kit; the connection uses its certificate and key, and the environment's proxy.
    kit
        Content of the kit.
    timeout
        Seconds for each step.
    """
    try:
        found = connect(folder, kit, timeout)
    except CertificateError:
        yield Item("server", "error", "not contacted, because the kit's key or certificate cannot be used")
    except (HandshakeError, CertificateRefusedError) as error:
        yield Item("certificate", "error", str(error))
    except ConfigError as error:
        yield Item("proxy", "error", str(error))
    except ProxyError as error:
        yield Item("proxy", "error" if error.needs_person else "warning", str(error))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError):
        # A reverse proxy does this while the server behind it starts.
        text = f"{kit.endpoint} closes the connection; check firewall and proxy. The site keeps trying"
        yield Item("server", "warning", text)
    except ssl.SSLError as error:
        yield Item("server", "error", f"{kit.endpoint} does not speak TLS ({error.reason}); is the port right?")
    except OSError as error:
        reason = unreachable(error)
        text = f"{kit.endpoint} cannot be reached ({reason}); check firewall and proxy. The site keeps trying"
        yield Item("server", "warning", text)
    else:
        by_way_of = f", through the proxy {found.proxy}" if found.proxy else ""
        yield Item("server", "ok", f"{kit.endpoint} answers over TLS{by_way_of}")
        yield _check_dates("certificate", None, found.not_after, datetime.now(UTC))
        yield judge_clock(found.clock)
        yield _check_access(found)


def _check_access(found: Connection) -> Item:
    if found.status == _UNAUTHORISED:
        reasons = {
            "unknown-site": "the server does not accept this site; ask the coordinator whether it was revoked",
            "clock": "the server refuses this site because of its clock; set the clock (NTP)",
        }
        text = reasons.get(found.word, "the server does not accept this site's key; ask the coordinator for a new kit")
        return Item("access", "error", text)
    if 300 <= found.status < 400:
        text = (
            "the server redirects to another place, which no site follows; ask IT and the coordinator what answers here"
        )
        return Item("access", "warning", text)
    if found.status == 0 or found.status >= 500:
        return Item("access", "warning", "the server is not ready; the site keeps trying")
    return Item("access", "ok", "the server accepts this site")


def judge_clock(difference: float | None) -> Item:
    """Judge the clock difference in seconds, the server's time minus ours."""
    if difference is None:
        return Item("clock", "warning", "the server does not send its time; check that this clock is right")
    text = f"{abs(difference):.0f} s {'behind' if difference > 0 else 'ahead of'} the server's"
    if difference <= -CLOCK_AHEAD_SECONDS or difference >= CLOCK_BEHIND_ERROR_SECONDS:
        return Item("clock", "error", f"{text}; the server would refuse this site: set the clock (NTP)")
    if difference >= CLOCK_BEHIND_WARNING_SECONDS:
        return Item("clock", "warning", f"{text}; set the clock (NTP)")
    return Item("clock", "ok", "agrees with the server's")


def check_disk(folders: Mapping[str, Path], needed: int = DISK_BYTES) -> Item:
    """Check the free space; a folder that does not exist yet counts as its nearest existing parent."""
    free = {what: shutil.disk_usage(_nearest_existing(folder)).free for what, folder in folders.items()}
    for what, size in free.items():
        if size < needed:
            text = f"{size / 2**30:.1f} GiB free for the {what} ({folders[what]}), {needed / 2**30:.1f} are needed"
            return Item("disk", "error", text)
    return Item("disk", "ok", f"{min(free.values()) / 2**30:.0f} GiB free")


def check_memory(plan: Plan, config: FederationConfig, device: str) -> Item:
    """Check that a training step fits into memory, if the CPU will do it."""
    from common.models.memory import TRAINING_ADVICE, training_bytes

    if not _only_cpu(device):
        return Item("memory", "ok", "the GPU's is asked when training starts")
    batch = 1 if config.privacy else config.training.patches_per_step(plan)
    # Whether this processor computes in bfloat16 is not asked: PyTorch takes seconds to import.
    value_bytes = 4 if config.training.precision == "float32" else 2
    wanted = training_bytes(plan.model, plan.patch_size, batch, value_bytes)
    try:
        require_memory(wanted, "a training step", TRAINING_ADVICE)
    except MemoryLimitError as error:
        return Item("memory", "error", str(error))
    return Item("memory", "ok", f"a training step takes at least {wanted / 1e9:.1f} GB")


def _only_cpu(device: str) -> bool:
    is_there = any(Path(file).exists() for file in _GPU_DEVICES)
    return device == "cpu" or (device == "auto" and not is_there)


def check_device(name: str) -> Item:
    """Check the device that will train."""
    if _only_cpu(name):
        # Answered without PyTorch, which takes seconds to import.
        return Item("device", "ok", f"no GPU is used; {gpu_probe.without_gpu()}")
    return Item("device", *gpu_probe.ask(name))


def check_approval(kit: Path, state: Path, consent: Path) -> Item:
    """Check whether the site would accept a task now; what only a person can put right is an error."""
    from client.consent.contract import ALLOWS_MORE
    from client.consent.policy import NotAsApprovedError, Policy, PolicyError

    try:
        policy = Policy(kit, state, consent)
        config = load_federation(kit / "federation.yaml")
        policy.check(config.digest())
    except NotAsApprovedError as error:
        return Item("approval", "error", f"no task will be accepted: {error}")
    except PolicyError as error:
        return Item("approval", "warning", f"no task will be accepted: {error}")
    contract, rounds = policy.contract(), config.rounds
    if contract.is_used_up(rounds):
        return Item("approval", "warning", f"no training will be accepted: {contract.summary(rounds)}; {ALLOWS_MORE}")
    return Item("approval", "ok", f"tasks of this federation will be accepted; {contract.summary(rounds)}")


def _check_dates(name: str, not_before: datetime | None, not_after: datetime, now: datetime) -> Item:
    if not_before is not None and now < not_before:
        return Item(name, "error", f"is not valid before {not_before:%Y-%m-%d %H:%M} UTC; is this clock right?")
    if now >= not_after:
        return Item(name, "error", f"expired on {not_after:%Y-%m-%d}; ask the coordinator for a new kit")
    left = not_after - now
    if left < timedelta(days=RENEW_DAYS):
        return Item(name, "warning", f"expires on {not_after:%Y-%m-%d}, in {left.days} days; tell the coordinator")
    return Item(name, "ok", f"valid until {not_after:%Y-%m-%d}")


def _nearest_existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
