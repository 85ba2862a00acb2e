"""A federation of three rounds between a coordinator and two hospitals, each as its compose file starts it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.courier.courier import AUDIT_FILE as COURIER_AUDIT_FILE
from client.state_folder import AUDIT_FILE
from common.audit import read_entries, verify
from tests.deploy.machine import Machine
from tests.deploy.stacks import KIT, STATE, UID, Coordinator, Hospital, own_address, removed_at_the_end
from tests.e2e.network_federation import Federation, assert_same_model, simulated

pytestmark = pytest.mark.deploy

SITES = ("east", "north")
# Rounds so long that the second is still under way when the end of the first is noticed.
SETTINGS = ("training.local_steps=50",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("stacks"), SITES, (*SETTINGS, f"network.address={own_address()}"))


@pytest.fixture(scope="module")
def coordinator(machine: Machine, made: Federation) -> Iterator[Coordinator]:
    stack = Coordinator(machine, made)
    with removed_at_the_end(stack):
        stack.start()
        made.run = stack.run
        yield stack


@pytest.fixture(scope="module")
def east(machine: Machine, made: Federation, coordinator: Coordinator) -> Iterator[Hospital]:
    yield from joined(Hospital(machine, made, "east"))


@pytest.fixture(scope="module")
def north(machine: Machine, made: Federation, coordinator: Coordinator) -> Iterator[Hospital]:
    yield from joined(Hospital(machine, made, "north"))


def joined(hospital: Hospital) -> Iterator[Hospital]:
    with removed_at_the_end(hospital):
        print(f"{hospital.project}: {hospital.join():.1f} s from compose up to waiting for the federation")
        yield hospital


@pytest.mark.parametrize("service", ["courier", "runner"])
def test_a_hospitals_containers_have_no_rights(east: Hospital, service: str) -> None:
    status = east.inside(service, "cat", "/proc/1/status").stdout
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert values["Uid"].split() == [str(UID)] * 4
    assert {values[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert values["NoNewPrivs"] == "1"
    assert "Read-only file system" in east.inside(service, "touch", "/opt/fedvox/x", check=False).stderr


def test_the_coordinators_containers_have_no_rights_and_a_read_only_root(coordinator: Coordinator) -> None:
    for service in ("server", "gateway", "network"):
        status = coordinator.inside(service, "cat", "/proc/1/status").stdout
        assert "CapEff:\t0000000000000000" in status and f"Uid:\t{UID}" in status
        assert "Read-only" in coordinator.inside(service, "touch", "/opt/fedvox/x", check=False).stderr
    assert coordinator.inside("network", "ls", "-A", "/kit", "/state").stdout.split() == ["/kit:", "/state:"]


REACH = """
import os, socket
print("interfaces", sorted(name for _, name in socket.if_nameindex()))
print("routes", open("/proc/net/route").read().splitlines()[1:])
for place in %r:
    try:
        socket.create_connection(place, 3).close()
        print("reached", place)
    except OSError:
        print("not reached")
for name in ("federation.example.org", "courier", "gateway", "host.containers.internal.example"):
    try:
        print("resolved", socket.getaddrinfo(name, 80))
    except OSError:
        print("not resolved")
sockets = ("/run/podman", "/run/docker.sock", "/run/dbus", "/run/systemd")
print("sockets", [path for path in sockets if os.path.exists(path)])
"""


def test_the_runner_reaches_nothing(east: Hospital, made: Federation) -> None:
    server = (own_address(), made.port)
    places = [("203.0.113.80", 80), ("192.0.2.53", 53), ("2001:db8::1", 443), (east.address("courier"), 22), server]
    said = east.python("runner", REACH % places).splitlines()
    assert said[0] == "interfaces ['lo']"
    assert said[1] == "routes []"
    assert said[2:-1] == ["not reached"] * len(places) + ["not resolved"] * 4
    assert said[-1] == "sockets []"
    # The same attempt from the courier, so that this is no machine on which it fails in any case.
    assert f"reached {server}" in east.python("courier", REACH % [server]).splitlines()
    assert "the runner, which sees the scans, has no network" in east.log("runner")
    assert made.at_site("east")["runner"]["isolated"] is True


def test_the_courier_reaches_the_server_and_sees_no_scans(east: Hospital, made: Federation) -> None:
    mounts = east.inside("courier", "cat", "/proc/mounts").stdout
    assert " /data " not in mounts and str(made.folder / "data") not in mounts
    assert east.inside("courier", "ls", "-A", "/data", "/cache", "/ledger").stdout.split() == [
        "/cache:",
        "/data:",
        "/ledger:",
    ]
    images = east.inside("courier", "find", "/", "-xdev", "-name", "*.nii.gz", check=False).stdout
    assert images == ""
    code = f"import socket; socket.create_connection(({own_address()!r}, {made.port}), 5); print('reached')"
    assert east.python("courier", code) == "reached"


def test_the_runner_may_not_write_to_the_scans_and_has_no_key(east: Hospital) -> None:
    assert "Read-only file system" in east.inside("runner", "touch", "/data/x", check=False).stderr
    assert east.inside("runner", "ls", "/data").stdout != ""
    assert east.inside("runner", "ls", "/kit").stdout.split() == ["federation.yaml", "kit.yaml", "plan.json"]
    assert "key:          not here" in east.log("runner")


def test_no_secret_shows_in_environment_or_command_lines(east: Hospital, coordinator: Coordinator) -> None:
    for stack, services in ((east, ("courier", "runner")), (coordinator, ("server", "gateway"))):
        for service in services:
            told = stack.machine.podman("inspect", stack.name(service)).stdout
            told += stack.inside(
                service, "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'"
            ).stdout
            told += stack.log(service)
            assert "PRIVATE KEY" not in told
    secret = (coordinator.run / "secret").read_text().strip()
    assert secret and secret not in coordinator.log("server") + coordinator.log("gateway")


@contextmanager
def standing_still(hospital: Hospital, number: int | None) -> Iterator[None]:
    """Lets a process of a runner do nothing meanwhile, so that no round ends."""
    process = hospital.process("runner", number or 0)
    assert process > 1
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


ASK = """
import hashlib, http.client
from pathlib import Path
from client.courier.connection import client_context
from common.certificates import load_key
from common.identity import sign
kit = Path("/kit")
key, nothing = load_key(kit / "site.key"), hashlib.sha256(b"").hexdigest()
for path in %r:
    connection = http.client.HTTPSConnection(%r, %d, context=client_context(kit), timeout=20)
    connection.request("POST", path, b"", sign(key, "east", "POST", path, nothing, {}) | {"content-type": %r})
    print(connection.getresponse().status)
    connection.close()
"""


def test_a_hospital_reaches_no_control_path_through_the_gateway(east: Hospital, made: Federation) -> None:
    forbidden = [
        f"/v1/control/{name}" for name in ("start-run", "stop-run", "list-runs", "register-node", "list-nodes")
    ]
    forbidden += [f"/v1/runtime/{name}" for name in ("acquire-task", "pull-task-input", "push-task-output")]
    forbidden += ["/v1/fleet/register-node", "/v1/fleet/unregister-node", "/health", "/", "//v1/fleet/pull-messages"]
    place = (own_address(), made.port, "application/x-protobuf")
    assert set(east.python("courier", ASK % (forbidden, *place)).split()) == {"404"}


def test_superlink_is_reached_from_the_servers_own_network_alone(east: Hospital, coordinator: Coordinator) -> None:
    code = "import json; print(json.load(open('/state/run/gateway/superlink.json'))['port'])"
    port = int(coordinator.python("server", code))
    reach = "import socket; socket.create_connection((%r, %d), 3); print('reached')"
    assert coordinator.python("gateway", reach % ("127.0.0.1", port)) == "reached"
    for stack, service, place in (
        (coordinator, "gateway", coordinator.address("network")),
        (east, "courier", coordinator.address("network")),
        (east, "courier", own_address()),
    ):
        refused = stack.inside(service, "python", "-c", reach % (place, port), check=False)
        assert refused.returncode != 0 and "reached" not in refused.stdout


def test_the_health_checks_find_everybody_well(east: Hospital, coordinator: Coordinator) -> None:
    assert east.healthy(["courier", "runner"]) == {"courier": True, "runner": True}
    assert coordinator.healthy(["server", "gateway"]) == {"server": True, "gateway": True}


def test_a_hospital_decides_and_looks_back_inside_the_runner(east: Hospital) -> None:
    def fedvox(*arguments: str) -> str:
        return east.inside("runner", "fedvox-client", *arguments).stdout

    assert "Approved by Dr. Example" in fedvox("review", KIT, STATE)
    assert "waiting for a task" in fedvox("status", KIT, STATE)
    fedvox("pause", KIT, STATE)
    assert "aused" in fedvox("review", KIT, STATE)
    fedvox("resume", KIT, STATE)
    fedvox("audit", KIT, STATE, "--verify")
    east.inside("runner", "fedvox-client", "ledger", "--data=/data", "--ledger=/ledger/ledger.jsonl")
    status = east.inside("courier", "fedvox-client", "status", KIT, STATE).stdout
    assert ": connected" in status and "runs elsewhere" in status


def test_backup_and_restore_in_the_middle_give_the_model_of_a_simulation(
    north: Hospital, east: Hospital, coordinator: Coordinator, made: Federation, tmp_path: Path
) -> None:
    coordinator.wait_until(lambda: len(made.rounds()) >= 1, "server", "a round")
    with standing_still(north, made.site_pid("north", "runner")):
        # From here on as deploy/docs/backup.md says.
        coordinator.compose("stop", "server", "gateway")
    assert len(made.rounds()) < 4, "the run is over already"
    coordinator.save("server", tmp_path / "state.tar", "tar", "-C", "/state", "-cf", "-", "run")
    coordinator.compose("down", "--volumes")
    coordinator.compose("up", "-d", "network")
    coordinator.restore("server", tmp_path / "state.tar", "tar", "-C", "/state", "-xf", "-")
    coordinator.compose("up", "-d")
    coordinator.wait_until(lambda: not coordinator.is_running("server"), "server", "the end of the federation", 400)
    assert "report:" in coordinator.log("server"), coordinator.log("server")
    assert len(made.rounds()) == 4
    assert_same_model(coordinator.run, simulated(made, tmp_path / "simulated").path, 3)
    assert (coordinator.run / "model/model.safetensors").stat().st_size > 0
    for hospital in (east, north):
        assert "error codes" not in hospital.inside("runner", "fedvox-client", "audit", KIT, STATE, "--verify").stderr


def test_both_halves_wrote_down_what_left(east: Hospital, made: Federation, coordinator: Coordinator) -> None:
    """After the federation; the courier's log is made where the runner cannot reach."""
    logs = [made.state("east").path / AUDIT_FILE, east.courier.path / COURIER_AUDIT_FILE]
    for log in logs:
        verify(log)
    runner, courier = ({entry.details.get("update") for entry in read_entries(log)} - {None} for log in logs)
    assert len(courier) >= made.config.rounds
    assert courier <= runner


def test_a_hospital_restores_what_it_decided_what_left_and_what_was_spent(
    east: Hospital, made: Federation, tmp_path: Path
) -> None:
    volumes = (made.state("east").path, made.folder / "hospitals/east/ledger")
    (volumes[1] / "spent").write_text("what was spent")

    def said() -> str:
        fedvox = ("fedvox-client", "audit", KIT, STATE, "--verify", "--json")
        return east.inside("runner", *fedvox).stdout

    before = said()
    assert before
    # As deploy/docs/backup.md says.
    east.compose("stop", "runner")
    pack = "cd / && find state ledger -mindepth 1 | tar --no-recursion --files-from - --create"
    east.save("runner", tmp_path / "runner.tar", "sh", "-c", pack)
    for volume in volumes:
        for path in volume.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    east.restore("runner", tmp_path / "runner.tar", "tar", "-C", "/", "-xf", "-")
    east.compose("start", "runner")
    east.wait_until(lambda: made.at_site("east")["running"], "runner", "the runner")
    assert said() == before
    assert "Approved by Dr. Example" in east.inside("runner", "fedvox-client", "review", KIT, STATE).stdout
    assert (volumes[1] / "spent").read_text() == "what was spent"
