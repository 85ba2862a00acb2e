"""What a large model costs a site: memory of its courier and of its runner, which neither trains nor scores.

``python -m tests.benchmarks.site_memory [--size 300M] [--rounds 3]`` starts a real server, and a real courier and a
runner (``_idle_site``) at one site. It prints the anonymous memory of both (mapped files do not count): the highest
during the rounds, and what is left at rest, when the last round is over. From the runner's, what PyTorch takes by
itself once it is imported is taken away, and the rest is given as a multiple of the model. The runner's stand-in for
training holds an update of its own all the time, which is one model more than a site needs at rest.

Last line: ``site_memory: RUNNER_HIGHEST RUNNER_REST COURIER_MB``, the runner's as multiples of the model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.config.federation import load_federation
from common.planning.resolve import plan_from_config
from common.system.supervisor import answers, free_port
from server.provisioning.kits import provision
from server.rounds.initial_weights import weight_layout
from tests.benchmarks.round_overhead import programs
from tests.benchmarks.server_scale import SIZES, Watching, federation_text, rounds_of

SITE = "site-01"
IMPORTED = "import torch, re; print(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def torch_megabytes() -> int:
    """Anonymous memory of a process that has only imported PyTorch."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    return int(done.stdout) // 1024


def measure(folder: Path, size: str, rounds: int) -> tuple[Watching, Watching, int]:
    """Runs a federation; what was seen of the runner and of the courier, and the model's megabytes."""
    port = free_port()
    file = folder / "federation.yaml"
    file.write_text(federation_text(size, [SITE], port, rounds), encoding="utf-8")
    config = load_federation(file)
    kits = folder / "kits"
    provision(config, kits)
    megabytes = weight_layout(plan_from_config(config)).size * 4 // 2**20
    run = kits / "server/run"
    kit = kits / "sites" / SITE
    os.environ["FEDVOX_LEDGER"] = str(folder / "ledger.jsonl")
    with programs(folder) as running:
        running.start("server", [sys.executable, "-m", "server.cli", "start", "--kit", str(kits / "server")])
        subprocess.run(
            [sys.executable, "-m", "client.cli", "approve", "--kit", str(kit), "--user", "benchmark"],
            check=True,
            capture_output=True,
        )
        running.wait_for(lambda: answers(port), 90, "the gateway")
        options = ["--kit", str(kit), "--state", str(kit / "state"), "--shared", str(kit / "state/shared")]
        running.start("courier", [sys.executable, "-m", "client.courier", *options])
        idle = [sys.executable, "-m", "tests.benchmarks._idle_site", *options, "--data", str(folder)]
        running.start("runner", [*idle, "--device", "cpu"])
        watched = [Watching(running.pid(name)) for name in ("runner", "courier")]
        running.wait_for(lambda: len(rounds_of(run)) >= rounds, 900, "the last round")
        time.sleep(3)  # the runner gives memory back once it has nothing to do
        for each in watched:
            each.over.set()
    return watched[0], watched[1], megabytes


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="300M")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    alone = torch_megabytes()
    with tempfile.TemporaryDirectory() as root:
        runner, courier, megabytes = measure(Path(root), options.size, options.rounds)
    highest, rest = ((value - alone) / megabytes for value in (runner.highest, runner.last))
    print(f"{options.size}: model {megabytes} MB, PyTorch alone {alone} MB")
    print(f"  runner {runner.highest} MB at most, {runner.last} MB at rest: {highest:.2f} and {rest:.2f} x the model")
    print(f"  courier {courier.highest} MB at most")
    print(f"site_memory: {highest:.2f} {rest:.2f} {courier.highest}")


if __name__ == "__main__":
    main()
