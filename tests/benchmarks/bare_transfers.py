"""A round over the network against the transfers alone that it cannot do without.

``python -m tests.benchmarks.bare_transfers [--size 300M] [--keep DIR]`` measures, one after another on this machine,

- the bare transfers of two sites: the same gateway and the same files; the server hashes the model, each site fetches
  and hashes it, hashes its update and sends it, the gateway hashes what came, and NumPy adds the mean of both updates
  to the model and writes the next one. No Flower, no runner, no courier, no records.
- a round of ``fedvox-server start`` with two couriers, as in ``server_scale``.

Medians; the first round of each does not count. Last line: ``bare_transfers: RATIO``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from client.consent.site_config import SiteNetwork
from client.courier.connection import Access, client_context
from client.courier.proxy import find_address
from client.courier.retry import Retries
from client.courier.transfers.pace import Pace
from client.courier.transfers.transfers import Transfers
from client.courier.transfers.upload import verified
from common.certificates import AUTHORITY_FILE, site_identity
from common.config.federation import load_federation
from common.config.kit import read_kit
from common.planning.resolve import plan_from_config
from common.system.supervisor import answers, free_port
from common.weights.store import digest_of, map_file
from server.provisioning.kits import provision
from server.rounds.initial_weights import weight_layout
from server.run_store.gateway_folder import GatewayFolder, OpenTask
from tests.benchmarks.round_overhead import programs
from tests.benchmarks.server_scale import ROUNDS, SIZES, federation_text, measure, write_update

SITES = ["site-01", "site-02"]
WINDOW = 2**20


def site_round(kit: Path, folder: Path, task: str, model: str, update: Path) -> None:
    """What a site does at least: fetches the model, sends its update."""
    site = kit.name
    description, stop = read_kit(kit, "site"), threading.Event()
    address = find_address(description.address, description.port)
    access = Access(
        site, site_identity(kit, site).key, client_context(kit), address, kit / AUTHORITY_FILE, lambda: None
    )
    transfers = Transfers(access, Pace(SiteNetwork(), stop), Retries(stop))
    transfers.download(model, folder / model)
    with verified(update, update.name) as file:
        transfers.upload(task, update.name, file)
    (folder / model).unlink()


def add_mean(model: Path, updates: list[Path], following: Path) -> None:
    """The next model, of which no more than a window is in memory at a time."""
    weights, changes = np.memmap(model, "<f4", "r"), [np.memmap(update, "<f4", "r") for update in updates]
    with following.open("wb") as file:
        for at in range(0, weights.size, WINDOW):
            mean = np.mean([change[at : at + WINDOW] for change in changes], axis=0)
            file.write((weights[at : at + WINDOW] + mean).data)


def bare(root: Path, size: str) -> float:
    """Median seconds of a round of nothing but transfers and a mean."""
    folder = root / "bare"
    folder.mkdir()
    port = free_port()
    (folder / "federation.yaml").write_text(federation_text(size, SITES, port, ROUNDS), encoding="utf-8")
    config = load_federation(folder / "federation.yaml")
    kits, run = folder / "kits", folder / "run"
    provision(config, kits)
    update, digest = write_update(folder, weight_layout(plan_from_config(config)).size)
    run.mkdir()
    model = run / "model-0"
    shutil.copyfile(update, model)
    gateway = GatewayFolder(run)
    gateway.make()
    seconds = []
    context = multiprocessing.get_context("spawn")
    with programs(folder) as running, ProcessPoolExecutor(len(SITES), context) as pool:
        listen = ["--listen", f"127.0.0.1:{port}"]
        running.start(
            "gateway",
            [sys.executable, "-m", "server.gateway", "--kit", str(kits / "server"), "--run", str(run), *listen],
        )
        running.wait_for(lambda: answers(port), 60, "the gateway")
        for site in SITES:
            (folder / site).mkdir()
        for number in range(1, ROUNDS + 1):
            began = time.monotonic()
            name, task = digest_of(map_file(model)), f"{number:032x}"
            length = model.stat().st_size
            for site in SITES:
                gateway.open_task(site, OpenTask(task, name, model.name, 0, length, length))
            gateway.close_tasks(keep=frozenset([task]))
            works = [
                pool.submit(site_round, kits / "sites" / site, folder / site, task, name, update) for site in SITES
            ]
            for work in works:
                work.result()
            following = run / f"model-{number}"
            add_mean(model, [gateway.updates(site) / digest for site in SITES], following)
            for site in SITES:
                (gateway.updates(site) / digest).unlink()
            model.unlink()
            model = following
            seconds.append(time.monotonic() - began)
    shutil.rmtree(folder)
    print(f"bare transfers: {statistics.median(seconds[1:]):.2f} s ({min(seconds[1:]):.2f} to {max(seconds[1:]):.2f})")
    return statistics.median(seconds[1:])


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="300M", choices=SIZES)
    parser.add_argument("--keep", type=Path, help="folder for all files (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.keep) as root:
        transfers = bare(Path(root), options.size)
        whole, _ = measure(Path(root), options.size, len(SITES))
    print(f"bare_transfers: {whole / transfers:.2f}")


if __name__ == "__main__":
    main()
