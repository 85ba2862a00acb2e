"""Between both stacks as they run: a hospital's line is cut for a minute in the middle of an upload."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from client.state_folder import site_status
from common.planning.resolve import plan_from_config
from server.rounds.initial_weights import initial_weights
from tests.deploy.machine import Machine
from tests.deploy.stacks import Coordinator, Hospital, own_address, removed_at_the_end
from tests.e2e.network_federation import Federation, assert_same_model, simulated, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

NEAR, FAR = "east", "north"
CUT_SECONDS = 60
PATIENCE_SECONDS = 240
RATE = "60mbit"
"""Of the cut line, up: slow enough that the test can look on while an upload takes its way."""
LEAST_UPLOAD_BYTES, ON_THE_WAY_BYTES = 20e6, 8e6
"""What the kernels of both ends, and the gateway, may hold of a broken connection."""
SENT_AGAIN = 1.25
"""Share of packets and of what is lost on the way, on top of the bytes of the weights."""


class Line:
    """What connects a hospital's courier with the world: a bridge of this machine."""

    def __init__(self, hospital: Hospital) -> None:
        network = f"{hospital.project}_outside"
        command = ["network", "inspect", "--format", "{{.NetworkInterface}}", network]
        self._bridge = hospital.machine.podman(*command).stdout.strip()
        self._process = hospital.process("courier")

    @property
    def sent(self) -> int:
        """Bytes that came from the hospital."""
        return int(Path("/sys/class/net", self._bridge, "statistics/rx_bytes").read_text())

    def narrow(self) -> None:
        """Lets no more than ``RATE`` out of the container."""
        inside = ["nsenter", "--target", str(self._process), "--net"]
        route = subprocess.run([*inside, "ip", "route", "show", "default"], capture_output=True, text=True, check=True)
        device = route.stdout.split("dev ")[1].split()[0]
        limit = ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", RATE, "burst", "64kb", "latency", "200ms"]
        subprocess.run([*inside, *limit], check=True)

    def cut(self) -> None:
        """Neither end is told."""
        subprocess.run(["ip", "link", "set", self._bridge, "down"], check=True)

    def mend(self) -> None:
        """Joins both ends again."""
        subprocess.run(["ip", "link", "set", self._bridge, "up"], check=True)


def restarts(made: Federation, hospital: Hospital) -> dict[str, int]:
    """How often each of a hospital's processes was started again."""
    states = made.at_site(FAR)["processes"] | site_status(hospital.courier)["processes"]
    return {name: process["restarts"] for name, process in states.items()}


def test_a_line_cut_for_a_minute_in_an_upload_costs_no_process_and_no_round(machine: Machine, tmp_path: Path) -> None:
    settings = (f"network.address={own_address()}", "rounds=1", "training.local_steps=2")
    made = Federation(tmp_path, (NEAR, FAR), (*settings, "model.channels=[8, 16, 32, 896]"))
    upload = initial_weights(plan_from_config(made.config), made.config.seed)[0].nbytes
    assert upload > LEAST_UPLOAD_BYTES
    coordinator = Coordinator(machine, made)
    near, far = (Hospital(machine, made, site) for site in (NEAR, FAR))
    with removed_at_the_end(coordinator, near, far):
        coordinator.start()
        made.run = coordinator.run
        for hospital in (near, far):
            hospital.approve()
        far.compose("up", "-d")
        line = Line(far)
        line.narrow()
        near.compose("up", "-d")
        # What goes up before is a small part of it: questions, and receipts for what comes down.
        before = line.sent
        far.wait_until(lambda: line.sent - before > upload // 2, "courier", "half an upload", PATIENCE_SECONDS)
        line.cut()
        cut = time.monotonic()
        uploaded = line.sent - before
        assert uploaded < upload, "too late"
        wait_for(lambda: time.monotonic() - cut > CUT_SECONDS, 2 * CUT_SECONDS, "the minute")
        assert not made.rounds()
        mended = line.sent
        line.mend()
        coordinator.wait_until(made.rounds, "server", "the round", PATIENCE_SECONDS)
        again = line.sent - mended
        print(f"upload {upload}, before {uploaded}, after {again}; round: {made.rounds()[0]['seconds']} s")
        # Lost is at most what was on its way; what the server had confirmed does not travel again.
        assert again < SENT_AGAIN * (upload - uploaded + ON_THE_WAY_BYTES)
        assert restarts(made, far) == {"runner": 0, "courier": 0}
        coordinator.wait_until(lambda: not coordinator.is_running("server"), "server", "the end", PATIENCE_SECONDS)
        for entry in made.rounds():
            assert {name: site["status"] for name, site in entry["sites"].items()} == {NEAR: "ok", FAR: "ok"}
        assert_same_model(made.run, simulated(made, tmp_path / "undisturbed").path, 1)
