"""What a large model and many sites cost the server: memory of all its processes, seconds and CPU of a round.

``python -m tests.benchmarks.server_scale [--sizes 5.7M 30M 300M] [--sites 2 16] [--rounds 5] [--keep DIR]`` starts a
real server (``fedvox-server start``) and a real courier for every site. The runners' part is played by this process: it
answers every task with one and the same update, a link to one file, so that 16 sites fit on one machine. For each size
and number of sites it prints

- seconds per round (median; the first round, in which programs are still starting, does not count);
- the highest sum over the server's processes of anonymous memory (mapped files do not count), and each one's;
- CPU seconds of the server per site and round.

Last line: ``server_scale: MB ...`` for every pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from client.shared_folder import SharedFolder, put_file, reply_content
from common.config.federation import load_federation
from common.planning.resolve import plan_from_config
from common.protocol.codec import pack, unpack_question
from common.protocol.messages import Hello, Result, SiteInfo, Task
from common.system.supervisor import answers, free_port
from common.weights.store import FileStore, digest_of, map_file
from server.provisioning.kits import provision
from server.rounds.initial_weights import weight_layout
from tests.benchmarks.round_overhead import programs

ROUNDS = 5
SIZES = {
    "5.7M": "{channels: [24, 48, 96, 184], residual: true, decoder_blocks: 3}",
    "30M": "{channels: [24, 48, 96, 192, 336], residual: true, blocks: 3, decoder_blocks: 3}",
    "300M": "{channels: [104, 208, 416, 832, 1184], residual: true, blocks: 2, decoder_blocks: 2}",
    "1200M": "{channels: [192, 384, 768, 1536, 2208], residual: true, blocks: 2, decoder_blocks: 2}",
}
FEDERATION = """
name: scale
rounds: {rounds}
channels: [synthetic]
labels: {{1: structure}}
strategy: {{min_sites: {sites}, min_fraction: 1.0}}
preprocessing: {{spacing: keep, intensity: [{{clip: percentile}}]}}
model: {model}
training: {{local_steps: 1, precision: float32}}
network: {{address: 127.0.0.1, port: {port}, sites: [{names}]}}
"""


class Answering(threading.Thread):
    """Plays the runners of all sites: a reply a task, and the update is always the same file."""

    def __init__(self, folders: dict[str, SharedFolder], update: Path, digest: str) -> None:
        super().__init__(daemon=True)
        self._folders = folders
        self._update = update
        self._digest = digest
        self.start()

    def run(self) -> None:
        """Looks into every inbox for ever."""
        while True:
            for site, folder in self._folders.items():
                for name in folder.tasks():
                    if not folder.reply(name).exists():
                        self._answer(site, folder, name)
            time.sleep(0.005)

    def _answer(self, site: str, folder: SharedFolder, name: str) -> None:
        try:
            question = unpack_question(folder.task(name).read_bytes())
        except FileNotFoundError:
            return
        if isinstance(question, Hello):
            text = pack(SiteInfo(site, 10, 2, "0", "0", "0", "0", "cpu", "float32"))
        else:
            text = pack(self._result(site, folder, question))
        put_file(folder.reply(name), reply_content(name, text).encode())

    def _result(self, site: str, folder: SharedFolder, task: Task) -> Result:
        # As a runner does: what is not the model that the task names is not used.
        assert digest_of(map_file(folder.inbox / task.model)) == task.model
        if task.train and not (folder.outbox / self._digest).exists():
            os.link(self._update, folder.outbox / self._digest)
        loss = 0.5 if task.train else math.nan
        return Result(
            site,
            task.run,
            task.round,
            10,
            2,
            int(task.train),
            loss,
            0.5,
            {1: 0.5},
            0.0,
            0.0,
            0.0,
            0.0,
            update=self._digest if task.train else None,
        )


class Watching(threading.Thread):
    """Samples the anonymous memory and the CPU time of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.highest = self.last = 0
        self.each: dict[str, int] = {}
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        """Samples ten times a second."""
        while not self.over.wait(0.1):
            total = 0
            now: dict[str, int] = {}
            for name, status in self._statuses():
                found = re.search(r"RssAnon:\s+(\d+)", status)
                size = int(found[1]) // 1024 if found else 0
                total, now[name] = total + size, now.get(name, 0) + size
            self.highest, self.last = max(self.highest, total), total or self.last
            for name, size in now.items():
                self.each[name] = max(self.each.get(name, 0), size)

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far of the processes that are alive, by program."""
        seconds: dict[str, float] = {}
        for pid in self._tree():
            try:
                values = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                name = _program(pid)
            except OSError:
                continue
            spent = (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")
            seconds[name] = seconds.get(name, 0.0) + spent
        return seconds

    def _tree(self) -> Iterator[int]:
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
        for pid in parents:
            above = pid
            while above in parents and above != self._pid:
                above = parents[above]
            if above == self._pid:
                yield pid

    def _statuses(self) -> Iterator[tuple[str, str]]:
        for pid in self._tree():
            try:
                name, status = _program(pid), Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            yield name, status


def _program(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    words = ("server.gateway", "flower-superlink", "flower-superexec", "flwr-serverapp", "initial_weights")
    return next((word for word in words if word in command), "start")


def federation_text(size: str, sites: list[str], port: int, rounds: int) -> str:
    """A federation file."""
    return FEDERATION.format(
        rounds=rounds,
        sites=len(sites),
        model=SIZES[size].replace("}", ", patch_size: [64, 64, 64]}"),
        port=port,
        names=", ".join(sites),
    )


@contextmanager
def federation(folder: Path, size: str, sites: list[str], rounds: int) -> Iterator[tuple[Path, int, Watching]]:
    """A server and its couriers; gives the run folder, the gateway's port, and who watches."""
    port = free_port()
    file = folder / "federation.yaml"
    file.write_text(federation_text(size, sites, port, rounds), encoding="utf-8")
    config = load_federation(file)
    kits = folder / "kits"
    provision(config, kits)
    count = weight_layout(plan_from_config(config)).size
    update, digest = write_update(folder, count)
    print(f"{size}: {count} parameters, {len(sites)} sites", flush=True)
    shared = {site: SharedFolder(folder / "shared" / site) for site in sites}
    for each in shared.values():
        each.path.parent.mkdir(exist_ok=True)
        each.make()
    Answering(shared, update, digest)
    with programs(folder) as running:
        running.start("server", [sys.executable, "-m", "server.cli", "start", "--kit", str(kits / "server")])
        watching = Watching(running.pid("server"))
        running.wait_for(lambda: answers(port), 90, "the gateway")
        for site in sites:
            options = ["--kit", str(kits / "sites" / site), "--state", str(folder / "states" / site)]
            courier = [sys.executable, "-m", "client.courier", *options, "--shared", str(shared[site].path)]
            running.start(f"courier-{site}", courier)
        yield kits / "server/run", port, watching
        watching.over.set()


def write_update(folder: Path, count: int) -> tuple[Path, str]:
    """One update for all sites."""
    store = FileStore(folder / "update")
    random = np.random.default_rng(1)
    step = 2**20
    parts = (
        (1e-3 * random.standard_normal(min(step, count - at), np.float32)).astype("<f4") for at in range(0, count, step)
    )
    digest = store.put(parts)
    return store.path(digest), digest


def rounds_of(run: Path) -> list[dict[str, object]]:
    """The lines of ``rounds.jsonl``."""
    try:
        return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def measure(root: Path, size: str, count: int, rounds: int = ROUNDS) -> tuple[float, int]:
    """Runs a federation; median seconds of a round, and megabytes of the server."""
    sites = [f"site-{number:02d}" for number in range(1, count + 1)]
    folder = root / f"{size}-{count}"
    folder.mkdir()
    with federation(folder, size, sites, rounds) as (run, _, watching):
        began = time.monotonic()
        while len(rounds_of(run)) < 1:
            time.sleep(0.05)
            assert time.monotonic() - began < 900, "no round came to its end"
        cpu, marks = watching.cpu(), [time.monotonic()]
        while len(marks) < rounds:
            if len(rounds_of(run)) > len(marks):
                marks.append(time.monotonic())
            time.sleep(0.01)
            assert time.monotonic() - marks[-1] < 900, "a round did not end"
        after = watching.cpu()
        used = {name: (after[name] - cpu.get(name, 0.0)) / (rounds - 1) / count for name in after}
        seconds = statistics.median(after - before for before, after in itertools.pairwise(marks))
        while not (run / "summary.json").exists():
            time.sleep(0.1)
            assert time.monotonic() - marks[-1] < 900, "the run did not end"
    each = ", ".join(f"{name} {size}" for name, size in sorted(watching.each.items()))
    print(f"  {seconds:.2f} s per round; server {watching.highest} MB anonymous at most ({each})", flush=True)
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in sorted(used.items()))
    print(f"  {sum(used.values()):.3f} s of CPU at the server per site and round ({parts})", flush=True)
    shutil.rmtree(folder)
    return seconds, watching.highest


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=["5.7M", "30M", "300M"], choices=SIZES)
    parser.add_argument("--sites", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="two at least")
    parser.add_argument("--keep", type=Path, help="folder for all files (default: a temporary one)")
    options = parser.parse_args()
    memory = []
    with tempfile.TemporaryDirectory(dir=options.keep) as root:
        for size in options.sizes:
            for count in options.sites:
                memory.append(measure(Path(root), size, count, options.rounds)[1])
    print("server_scale: " + " ".join(map(str, memory)))


if __name__ == "__main__":
    main()
