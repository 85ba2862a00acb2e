"""Time of a round in which nobody trains: our federation over a network against a plain Flower app.

``python -m tests.benchmarks.round_overhead`` starts, one after another on this machine, a server and two sites as

- plain Flower: SuperLink and SuperNodes with their defaults (a process for every message) and no TLS, stock ``FedAvg``
  with a train and an evaluate message per round, an app that loads torch and gives back the weights it got;
- ours: ``fedvox-server start`` with mutual TLS and signed requests, couriers and runners of two sites with consent,
  audit logs and journals, only the training left out.

Both send the tensors of the same U-Net. A round's time is the median distance between the ends of rounds; the first
round, in which programs are still starting, does not count. Last line:
``round_overhead: RATIO_5.6M RATIO_30M RATIO_30M_BF16``, ours as a share of plain Flower's time.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from common.config.federation import load_federation
from common.models.unet3d import build_model
from common.planning.resolve import plan_from_config
from common.system.flower import flower_environment
from common.system.supervisor import answers, free_port
from server.provisioning.kits import provision

ROUNDS = {"plain": 4, "ours": 8}
SITES = ("east", "west")
FEDERATION = """
name: overhead
rounds: ROUNDS
channels: [synthetic]
labels: {1: structure}
strategy: {min_sites: 2, min_fraction: 1.0}
preprocessing: {spacing: keep, intensity: [{clip: percentile}]}
model: MODEL
training: {local_steps: 1, precision: float32}
transport: {upload: ENCODING, download: ENCODING}
network: {address: 127.0.0.1, port: PORT, sites: [east, west]}
"""
SIZES = {
    "5.6 M": "{channels: [24, 48, 96, 184], residual: true, decoder_blocks: 3}",
    "30 M": "{channels: [24, 48, 96, 192, 336], residual: true, blocks: 3, decoder_blocks: 3}",
}
APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "plain"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "plain.server:app"
clientapp = "plain.client:app"
"""
PLAIN_SERVER = """
import time
from pathlib import Path
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
@app.main()
def main(grid: Grid, context) -> None:
    def ended(server_round, arrays):
        with Path(MARKS).open("a") as marks:
            marks.write(f"{time.time()}\\n")
    weights = torch.load(WEIGHTS, weights_only=True)
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    strategy.start(grid, ArrayRecord(weights), num_rounds=ROUNDS, timeout=600, evaluate_fn=ended)
"""
PLAIN_CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    weights = message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"num-examples": 10, "train_loss": 0.5})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)
@app.evaluate()
def evaluate(message, context):
    message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"num-examples": 10, "dice": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
"""


class Programs:
    """Programs of one candidate: their output goes to files, and all end together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str], **environment: str) -> None:
        """Starts a program of this installation."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        base = flower_environment(self._folder / f"{name}-home") | {"PATH": path, "PYTHONPATH": str(Path.cwd())}
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, env=base | environment, stdout=log, stderr=log, start_new_session=True
            )

    def pid(self, name: str) -> int:
        """Of a program that was started."""
        return self._running[name].pid

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Polls until something is true.

        Raises:
            RuntimeError: it did not come true in time, or a program ended with an error.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            failed = any(process.poll() for process in self._running.values())
            if failed or time.monotonic() > deadline:
                for name in self._running:
                    print(name, (self._folder / f"{name}.log").read_text()[-1500:], file=sys.stderr)
                raise RuntimeError(f"{'a program failed' if failed else f'waited {seconds} s'}: {what}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends them all, with the processes that they started."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    """Programs that end with the block."""
    made = Programs(folder)
    try:
        yield made
    finally:
        made.stop()


def federation_file(folder: Path, size: str, encoding: str) -> Path:
    """The federation whose model both candidates send."""
    text = FEDERATION.replace("MODEL", SIZES[size].replace("}", ", patch_size: [64, 64, 64]}")).replace(
        "ENCODING", encoding
    )
    text = text.replace("PORT", str(free_port())).replace("ROUNDS", str(ROUNDS["ours"]))
    file = folder / "federation.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def plain_flower(folder: Path, size: str) -> list[float]:
    """Times at which rounds of a plain Flower app ended."""
    import torch

    model = build_model(plan_from_config(load_federation(federation_file(folder, size, "float32"))).model)
    weights, marks = folder / "weights.pt", folder / "marks"
    torch.save(model.state_dict(), weights)
    port = free_port()
    address = f"127.0.0.1:{port}"
    server = PLAIN_SERVER.replace("MARKS", repr(str(marks))).replace("WEIGHTS", repr(str(weights)))
    files = {
        "pyproject.toml": APP.encode(),
        "plain/__init__.py": b"",
        "plain/server.py": server.replace("ROUNDS", str(ROUNDS["plain"])).encode(),
        "plain/client.py": PLAIN_CLIENT.encode(),
    }
    with programs(folder) as running:
        # Without the check for packages to install, which would take more time still; SuperNodes do without by default.
        options = ["--insecure", "--disable-runtime-dependency-installation", "--port", str(port)]
        running.start("superlink", ["flower-superlink", *options])
        running.wait_for(lambda: answers(port), 60, "SuperLink")
        for site in SITES:
            runtime = ["--host", "127.0.0.1", "--port", str(free_port())]
            running.start(site, ["flower-supernode", "--insecure", "--superlink", address, *runtime])
        content, _ = build_fab_from_files(files)
        version = RuntimeVersionHttpInterceptor(component_name="flwr-cli")
        control = ControlHttpClient.from_server_address(address, True, None, [version])
        control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))))

        def lines() -> list[str]:
            return marks.read_text().splitlines() if marks.exists() else []

        # The first line is the evaluation before the first round.
        running.wait_for(lambda: len(lines()) > ROUNDS["plain"], 600, "the end of plain Flower's run")
        return [float(line) for line in lines()][1:]


def ours(folder: Path, size: str, encoding: str) -> list[float]:
    """Times at which rounds of our federation ended."""
    config = load_federation(federation_file(folder, size, encoding))
    kits = folder / "kits"
    provision(config, kits)
    os.environ["FEDVOX_LEDGER"] = str(folder / "ledger.jsonl")
    rounds = kits / "server/run/rounds.jsonl"
    ends: list[float] = []

    def over() -> bool:
        done = len(rounds.read_text().splitlines()) if rounds.exists() else 0
        ends.extend([time.time()] * (done - len(ends)))
        return done >= ROUNDS["ours"]

    with programs(folder) as running:
        running.start("server", [sys.executable, "-m", "server.cli", "start", "--kit", str(kits / "server")])
        for site in SITES:
            kit = kits / "sites" / site
            subprocess.run(
                [sys.executable, "-m", "client.cli", "approve", "--kit", str(kit), "--user", "benchmark"],
                check=True,
                capture_output=True,
            )
            options = ["--kit", str(kit), "--state", str(kit / "state"), "--shared", str(kit / "state/shared")]
            running.wait_for(lambda: answers(config.network.port if config.network else 0), 90, "our server")
            running.start(f"{site}-courier", [sys.executable, "-m", "client.courier", *options])
            idle = [sys.executable, "-m", "tests.benchmarks._idle_site", *options]
            running.start(f"{site}-runner", [*idle, "--data", str(folder), "--device", "cpu"])
        running.wait_for(over, 300, "the end of our run")
    return ends


def seconds_per_round(name: str, measure: Callable[[Path], list[float]]) -> float:
    """Median distance of ends of rounds, which is printed."""
    with tempfile.TemporaryDirectory() as root:
        ends = measure(Path(root))
    rounds = [after - before for before, after in itertools.pairwise(ends)]
    median = statistics.median(rounds)
    print(f"{name:<28} {median:7.2f} s per round ({min(rounds):.2f} to {max(rounds):.2f})", flush=True)
    return median


def main() -> None:
    """Measures all and prints the ratios."""
    # Whoever stops this must not leave servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as root:
        for size in SIZES:
            model = build_model(plan_from_config(load_federation(federation_file(Path(root), size, "float32"))).model)
            tensors = [parameter.numel() for parameter in model.parameters()]
            print(f"{size}: {sum(tensors)} parameters in {len(tensors)} tensors", flush=True)
    ratios = []
    for size in SIZES:
        plain = seconds_per_round(f"plain Flower, {size}", lambda folder: plain_flower(folder, size))  # noqa: B023
        for encoding in ("float32",) if size == "5.6 M" else ("float32", "bfloat16"):
            mine = seconds_per_round(f"ours, {size}, {encoding}", lambda folder: ours(folder, size, encoding))  # noqa: B023
            ratios.append(mine / plain)
            print(f"  one {1 / ratios[-1]:.1f}th", flush=True)
    print("round_overhead: " + " ".join(f"{ratio:.4f}" for ratio in ratios))


if __name__ == "__main__":
    main()
