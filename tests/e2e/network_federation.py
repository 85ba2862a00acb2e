"""A small federation over a network: server and sites, each a process of its own, on the loopback interface."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.app import Context, Error, Message, MessageType
from safetensors.numpy import load_file

from client.runner.client_app import SiteWeights, make_client_app
from client.runner.local_site import LedgerAccess, LocalSite, SiteData
from client.state_folder import StateFolder, site_status
from common.config.federation import load_federation
from common.imaging.phantoms.dataset import PHANTOM_LABELS, write_phantom_dataset
from common.planning.resolve import plan_from_config
from common.protocol.codec import ErrorCode
from common.system.files import write_atomically
from common.system.supervisor import free_port
from common.weights.store import MemoryStore
from server.progress.display import PlainProgress
from server.progress.event_stream import EventReader
from server.progress.events import Event, SiteDone
from server.provisioning.kits import provision
from server.rounds.initial_weights import initial_weights
from server.rounds.round_loop import Link, RoundLoop
from server.rounds.terms import Terms
from server.rounds.weight_transfer import StoreTransfer
from server.run_store.folder import RunFolder, RunState, now
from server.simulation.inline_grid import InlineGrid
from tests.kits import change_kit

Kind = TypeVar("Kind", bound=Event)
NICE = ("nice", "-n", "19")
SERVER = [sys.executable, "-m", "server.cli"]
CLIENT = [sys.executable, "-m", "client.cli"]
SCRIPTED = [sys.executable, "-m", "tests.e2e.scripted_site"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

FEDERATION = f"""
name: tiny-network
rounds: 3
seed: 1
channels: [synthetic]
labels: {PHANTOM_LABELS}
strategy: {{min_sites: 2, min_fraction: 0.6}}
preprocessing: {{spacing: keep}}
model: {{channels: [8, 16], groups: 4, patch_size: [16, 16, 16]}}
training: {{local_steps: 3, precision: float32}}
network:
  address: 127.0.0.1
  port: PORT
  sites: SITES
  heartbeat_seconds: 1
"""


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Polls until something is true; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.1)


class Federation:
    """Kits, data and processes of one federation, in one folder.

    Attributes:
        within: name of a process (``server``, or a site's) -> a command that runs it in another place.
        server_options: further options of ``fedvox-server start``.

    Args:
        folder: for everything.
        sites: names.
        settings: ``key.path=value`` items that replace single values of the federation file.
    """

    def __init__(
        self, folder: Path, sites: tuple[str, ...] = ("east", "north", "west"), settings: tuple[str, ...] = ()
    ):
        self.folder = folder
        self.sites = sites
        self.port = free_port()
        self.kits = folder / "kits"
        self.run = self.kits / "server" / "run"
        self.file = folder / "federation.yaml"
        text = FEDERATION.replace("PORT", str(self.port)).replace("SITES", f"[{', '.join(sites)}]")
        self.file.write_text(text, encoding="utf-8")
        self.config = load_federation(self.file, settings)
        provision(self.config, self.kits)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.within: dict[str, tuple[str, ...]] = {}
        self.server_options: tuple[str, ...] = ()
        self._approved: set[str] = set()

    @property
    def ledger(self) -> Path:
        """Of all sites, and of no other federation."""
        return self.folder / "ledger.jsonl"

    @property
    def environment(self) -> dict[str, str]:
        """Of all processes."""
        return ENVIRONMENT | {"FEDVOX_LEDGER": str(self.ledger)}

    def data(self, site: str) -> Path:
        """A site's scans; equal for equal names, whatever the folder."""
        folder = self.folder / "data" / site
        if not folder.exists():
            write_phantom_dataset(folder, [3], seed=len(site) + ord(site[0]), shape=(32, 32, 32))
        return folder

    def server_command(self) -> list[str]:
        """``fedvox-server start``."""
        return [*SERVER, "start", "--kit", str(self.kits / "server"), *self.server_options]

    def start_server(self, *options: str) -> subprocess.Popen[bytes]:
        """Starts the server."""
        return self._start("server", [*self.server_command(), *options])

    def start_site(
        self, site: str, kit: Path | None = None, client: Sequence[str] = CLIENT, options: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """``fedvox-client approve`` and ``start`` with ``options``; ``client`` is the program that starts."""
        kit = kit or self.kits / "sites" / site
        self._approve(site, kit)
        cache = self.folder / "cache"
        StateFolder(kit / "state").make()
        command = [*client, "start", "--kit", str(kit), "--data", str(self.data(site)), "--cache", str(cache)]
        return self._start(site, [*command, *options])

    def start(self, *sites: str, scripted: Sequence[str] = ()) -> None:
        """Starts the server and, once it waits for sites, some of them."""
        for site in sites:
            # Not later: the server waits for the others for a minute only once it has its quorum.
            self._approve(site, self.kits / "sites" / site)
        self.start_server()
        wait_for(self.is_up, 120, "a server that waits for sites")
        for site in sites:
            self.start_site(site, client=SCRIPTED if site in scripted else CLIENT)

    def finish(self, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits for the server's end, calling ``meanwhile`` now and then; it must have finished the federation."""

        def over() -> bool:
            meanwhile()
            return self.processes["server"].poll() is not None

        wait_for(over, seconds, "the end of the federation")
        assert self.processes["server"].returncode == 0, self.log("server")
        assert self.status()["status"] == "finished"

    def state(self, site: str) -> StateFolder:
        """A site's own files."""
        return StateFolder(self.kits / "sites" / site / "state")

    def at_site(self, site: str) -> dict[str, Any]:
        """``fedvox-client status``, without the time that a process takes to start."""
        return site_status(self.state(site))

    def site_pid(self, site: str, name: str) -> int | None:
        """Of a site's ``runner`` or ``courier``."""
        pid: int | None = self.at_site(site).get("processes", {}).get(name, {}).get("pid")
        return pid

    def hold(self, site: str, *rounds: int) -> None:
        """Lets a scripted site wait in the middle of the training of these rounds; of all if none is named."""
        self.state(site).make()
        write_atomically(self.state(site).path / "hold", " ".join(map(str, rounds)))

    def held_in(self, site: str) -> int | None:
        """The round in whose training a scripted site waits, or was when it was killed."""
        try:
            return int((self.state(site).path / "held").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def put_between(self, site: str, port: int) -> None:
        """Lets a site reach the server through another port than the gateway's."""
        change_kit(self.kits / "sites" / site, port=port)

    def log(self, name: str) -> str:
        """What a command said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def status(self) -> dict[str, Any]:
        """``fedvox-server status --json``."""
        command = [*NICE, *SERVER, "status", str(self.run), "--json"]
        done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=60)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def pid(self, name: str) -> int | None:
        """Of one of the server's own processes."""
        try:
            content = json.loads((self.run / "status.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        pid: int | None = content["processes"][name]["pid"]
        return pid

    def said(self, kind: type[Kind]) -> list[Kind]:
        """What the server app told whoever watches: the events of one kind."""
        return [event for event in EventReader(self.run).read() if isinstance(event, kind)]

    def answered(self, site: str, round_number: int) -> bool:
        """Whether what became of a site in a round is known, and it can be asked in the next one."""
        done = [event for event in self.said(SiteDone) if (event.round, event.site) == (round_number, site)]
        if not done:
            return False
        if done[-1].line["status"] == "ok":
            return True
        told = [(event["event"], event.get("round")) for event in self.all_events() if event.get("site") == site]
        # Off the roster from here on, until it has said again who it is.
        lost = ("site_not_counted", round_number)
        return lost in told and ("site_ready", None) in told[told.index(lost) :]

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``."""
        try:
            text = (self.run / "rounds.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def all_events(self) -> list[dict[str, Any]]:
        """The lines of ``events.jsonl``."""
        try:
            text = (self.run / "events.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def events(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [found for found in self.all_events() if found["event"] == event]

    def refused_requests(self) -> dict[str, dict[str, int]]:
        """What the gateway refused: site -> reason -> how often."""
        try:
            content: dict[str, dict[str, int]] = json.loads((self.run / "gateway/refused.json").read_bytes())
        except FileNotFoundError:
            return {}
        return content

    def is_up(self) -> bool:
        """Whether the server has all its processes and a server app that waits for sites."""
        return "waiting for sites" in self.log("server")

    def stop(self) -> None:
        """Ends whatever is left."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _approve(self, site: str, kit: Path) -> None:
        if site not in self._approved:
            approve = [*CLIENT, "approve", "--kit", str(kit), "--user", "test"]
            subprocess.run(approve, env=self.environment, check=True, capture_output=True, timeout=120)
            self._approved.add(site)

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [*NICE, *self.within.get(name, ()), *command]
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.processes[name] = process
        return process


@contextmanager
def federation(
    folder: Path, sites: tuple[str, ...] = ("east", "north", "west"), settings: tuple[str, ...] = ()
) -> Iterator[Federation]:
    """A federation whose processes end with the block."""
    made = Federation(folder, sites, settings)
    try:
        yield made
    finally:
        made.stop()


def simulated(
    made: Federation, folder: Path, names: Sequence[str] | None = None, absent: Collection[tuple[int, str]] = ()
) -> RunFolder:
    """What the same apps make of the data of ``names`` (all sites) without processes and network.

    Args:
        absent: round and site of every update that is lost.
    """
    config, plan, names = made.config, plan_from_config(made.config), names or made.sites
    sites = {
        name: LocalSite(
            config,
            plan,
            SiteData(name, made.data(name), None, 0.2),
            "cpu",
            access=LedgerAccess(folder.with_name(f"{folder.name} of {name}")),
        )
        for name in names
    }
    store = MemoryStore()
    client_app = make_client_app(
        lambda context: sites[str(context.node_config["name"])].open(), SiteWeights(store, store)
    )

    def app(message: Message, context: Context) -> Message:
        is_training = message.metadata.message_type == MessageType.TRAIN
        if is_training and (int(message.metadata.group_id), str(context.node_config["name"])) in absent:
            return Message(Error(code=ErrorCode.INTERNAL, reason="Absent"), reply_to=message)
        return client_app(message, context)

    weights, layout = initial_weights(plan, config.seed)
    run = RunFolder.create(folder)
    run.save_checkpoint(0, weights, layout)
    run.commit(RunState(run="inline", digest=config.digest(), started=now()))
    nodes = {index + 1: {"name": name} for index, name in enumerate(names)}
    grid = InlineGrid(app, nodes)  # type: ignore[arg-type]
    link = Link(StoreTransfer(store, config.transport.download), make_message=grid.message)
    RoundLoop(Terms.of(config, plan, layout), len(names), run, PlainProgress(io.StringIO()), link).run(grid)
    return run


def assert_same_model(run: Path, expected: Path, round_number: int) -> None:
    """The checkpoints of two runs after a round are equal to float tolerance."""
    ours, theirs = (
        load_file(folder / f"checkpoints/round_{round_number:04d}.safetensors") for folder in (run, expected)
    )
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def processes_in(folder: Path) -> list[str]:
    """Command lines of all processes that name a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found
