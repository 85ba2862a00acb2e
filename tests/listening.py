"""A DICOM node as a process, real senders, and destinations that count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from client.node.folders import STATUS_FILE, NodeFolders, read_note
from client.node.status import node_status
from client.pacs.receiver import AllowedPeer, Arrival, Receiver, ReceiverSettings
from common.config.yaml_file import dump_yaml
from common.models.unet3d import build_model
from common.system.supervisor import free_port
from tests.dicom_series import make_series, need_tool, save
from tests.e2e.network_federation import wait_for
from tests.tiny import plan, save_bundle

SENDER, NODE, PACS = "MODALITY", "FEDVOX", "PACS"
SETTLE_SECONDS = 1.0
PATIENCE_SECONDS = 300.0


def write_model(folder: Path) -> Path:
    """An untrained network, which finds something in every scan or not: a result is a result."""
    save_bundle(folder, build_model(plan().model), plan(), {"federation": "tiny"})
    return folder


def pacs_at(port: int) -> dict[str, Any]:
    """A destination for ``node.yaml``."""
    return {"name": "pacs", "ae_title": PACS, "host": "127.0.0.1", "port": port}


def small_series(seed: int) -> list[Dataset]:
    voxels = np.random.default_rng(seed).integers(0, 1000, (6, 16, 16)).astype(np.uint16)
    return make_series(voxels, axes=np.eye(3))


def storescu(port: int, *paths: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Send files and folders with DCMTK."""
    command = [need_tool("storescu"), "-v", "+sd", "+r", *options, "-aet", SENDER, "-aec", NODE, "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, timeout=120)


class RunningNode:
    """A folder with ``node.yaml`` and a model, and the process that listens there.

    Parameters
    ----------
    folder
        For all files.
    destinations
        As in ``node.yaml``.
    values
        Further keys of ``node.yaml``.
    """

    def __init__(self, folder: Path, destinations: Sequence[Mapping[str, Any]], **values: Any) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        self.folders = NodeFolders(folder / "state")
        self.config = folder / "node.yaml"
        self.log = folder / "node.log"
        self._model = write_model(folder / "model")
        self._process: subprocess.Popen[bytes] | None = None
        content = {
            "ae_title": NODE,
            "address": "127.0.0.1",
            "port": self.port,
            "callers": [{"ae_title": SENDER, "addresses": ["127.0.0.1"]}],
            "settle_seconds": SETTLE_SECONDS,
            "destinations": [dict(one) for one in destinations],
            "retry": {"first_pause_seconds": 0.5, "longest_pause_seconds": 1.0},
            "limits": {"free_gigabytes": 0},
            **values,
        }
        self.config.write_text(dump_yaml(content), encoding="utf-8")

    def start(self) -> None:
        """Start the process; it listens a little later."""
        command = [sys.executable, "-m", "client.cli", "listen", "--config", self.config, "--model", self._model]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    def kill(self) -> None:
        """Kill -9; the kernel takes its other process along."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_segmenter(self) -> None:
        """Kill -9 the process that segments, if there is one now."""
        pid = read_note(self.folders.root / STATUS_FILE).get("segmenter", {}).get("pid")
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        """End it as a service manager does, and return its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=60)

    def listens(self) -> bool:
        """Return whether it answers C-ECHO."""
        who = ["-aet", SENDER, "-aec", NODE, "127.0.0.1", str(self.port)]
        return subprocess.run([need_tool("echoscu"), *who], capture_output=True, timeout=60).returncode == 0

    @property
    def status(self) -> dict[str, Any]:
        return node_status(self.folders)


class CountingPacs:
    """A destination that counts how often it got each instance, while its block lasts."""

    def __init__(self, port: int) -> None:
        self._lock = threading.Lock()
        self.port = port
        self.counts: Counter[str] = Counter()
        peers = (AllowedPeer(NODE, (ip_network("127.0.0.0/8"),)),)
        self._settings = ReceiverSettings(PACS, "127.0.0.1", port, peers)

    def has(self, results: int) -> bool:
        """Return whether so many results have arrived."""
        return len(self.counts) >= results

    @contextmanager
    def running(self) -> Iterator[None]:
        with Receiver(self._settings, self._keep):
            yield

    def _keep(self, arrival: Arrival) -> None:
        with self._lock:
            self.counts[arrival.uid] += 1


@dataclass(frozen=True)
class Outcome:
    """What became of a burst.

    Attributes
    ----------
    counts
        How often the destination got each result.
    status
        Of the node, at the end.
    seconds
        From the first study to the last result.
    """

    counts: Counter[str]
    status: dict[str, Any]
    seconds: float


def burst(folder: Path, studies: int, kills: int, seed: int) -> Outcome:
    """Send studies with one series each, one result expected for each, and kill -9 the node or its segmenter meanwhile.

    The kills come when random numbers of results have arrived. A study whose sending a kill cut short is sent again.
    """
    pacs = CountingPacs(free_port())
    node = RunningNode(folder / "node", [pacs_at(pacs.port)], results={"report": False})
    sources = [save(folder / f"study{index}", small_series(seed + index)) for index in range(studies)]
    random = np.random.default_rng(seed)
    moments = sorted(random.choice(studies, kills, replace=False))

    def send() -> None:
        for source in sources:
            while storescu(node.port, source).returncode != 0:
                wait_for(node.listens, PATIENCE_SECONDS, "the node to listen")

    with pacs.running(), ThreadPoolExecutor(1) as pool:
        node.start()
        try:
            wait_for(node.listens, PATIENCE_SECONDS, "the node to listen")
            begin = time.monotonic()
            sending = pool.submit(send)
            for index, moment in enumerate(moments):
                wait_for(partial(pacs.has, moment), PATIENCE_SECONDS, f"{moment} results")
                if index % 2:
                    node.kill_segmenter()
                else:
                    node.kill()
                    node.start()
            sending.result()
            wait_for(partial(pacs.has, studies), PATIENCE_SECONDS + 2 * studies, "all results")
            seconds = time.monotonic() - begin
            wait_for(lambda: node.status["done"] == studies, PATIENCE_SECONDS, "all studies")
        finally:
            node.kill()
    return Outcome(pacs.counts, node.status, seconds)
