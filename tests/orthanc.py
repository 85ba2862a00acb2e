"""Orthanc, a real PACS, for tests: in a network of the test's own, since it listens on all addresses of its network."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dicom_series import need_tool

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
DICOM_PORT, HTTP_PORT, LOCAL_PORT = 4242, 8042, 11112
LOCAL_TITLE = "FEDVOX"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
_SET_FLAGS, _UP = 0x8914, 0x1  # SIOCSIFFLAGS and IFF_UP of Linux


@contextmanager
def private_network() -> Iterator[None]:
    """Move this thread, and all threads and processes that it starts, to a network with nothing but a loopback device.

    Whatever a test starts in the block reaches whatever else it starts there, on 127.0.0.1 and on any port.
    """
    _need_root()
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _require(libc.unshare(_NEW_NETWORK))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))
            yield
        finally:
            _require(libc.setns(before, _NEW_NETWORK))
    finally:
        os.close(before)


@functools.cache
def _need_root() -> None:
    if os.geteuid() != 0:
        reason = "a network of its own needs root"
        if os.environ.get("FEDVOX_REQUIRE_DICOM_TOOLS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def _require(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes
    ----------
    title, host, port
        Its address for DICOM.
    url
        Its REST interface; its DICOMweb interface is ``dicomweb``.
    """

    title: str = "ORTHANC"
    host: str = "127.0.0.1"
    port: int = DICOM_PORT
    url: str = f"http://127.0.0.1:{HTTP_PORT}"

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def upload(self, *paths: Path) -> None:
        """Store files, and all files of folders."""
        for file in (one for path in paths for one in (sorted(path.rglob("*")) if path.is_dir() else [path])):
            if file.is_file():
                self._call("/instances", file.read_bytes())

    def get(self, path: str) -> Any:
        """Return what the REST interface says, such as ``get("/studies")``."""
        return json.loads(self._call(path))

    def sends(self, title: str, resource: str) -> bool:
        """Send a study, series or instance to a modality by C-STORE, and return whether this took all of it."""
        try:
            self._call(f"/modalities/{title}/store", resource.encode())
        except httpx.HTTPStatusError:
            return False
        return True

    def delete_everything(self) -> None:
        for study in self.get("/studies"):
            self._call(f"/studies/{study}", method="DELETE")

    def _call(self, path: str, data: bytes | None = None, method: str | None = None) -> bytes:
        method = method or ("GET" if data is None else "POST")
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.request(method, self.url + path, content=data).raise_for_status().content


@contextmanager
def run_orthanc(
    folder: Path, modalities: Iterable[tuple[str, int]] = ((LOCAL_TITLE, LOCAL_PORT),), **settings: object
) -> Iterator[Orthanc]:
    """Start Orthanc with DICOMweb in a :func:`private_network` and stop it after the block.

    Parameters
    ----------
    folder
        For its files; created.
    modalities
        AE title and port, on 127.0.0.1, of those that may query, fetch and be sent to.
    settings
        Further settings of Orthanc.
    """
    program = need_tool("Orthanc")
    folder.mkdir(parents=True)
    configuration: Mapping[str, object] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "StorageCompression": False,
        "DicomAet": Orthanc.title,
        "DicomPort": DICOM_PORT,
        "HttpPort": HTTP_PORT,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": True,
        "DicomModalities": {title: [title, "127.0.0.1", port] for title, port in modalities},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **settings,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(configuration), encoding="utf-8")
    log = folder / "orthanc.log"
    with log.open("wb") as stream, subprocess.Popen([program, str(file)], stdout=stream, stderr=stream) as process:
        try:
            server = Orthanc()
            _wait(server, process, log)
            yield server
        finally:
            process.kill()


def _wait(server: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until Orthanc answers."""
    while True:
        try:
            server.get("/system")
            return
        except httpx.ConnectError:
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-2000:]
