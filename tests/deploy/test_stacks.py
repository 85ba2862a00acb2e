"""A federation of three rounds between a coordinator and two hospitals, each as its compose file starts it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from server.proxy import FLEET_METHODS
from tests.deploy.machine import Machine
from tests.deploy.stacks import KIT, STATE, UID, Coordinator, Hospital, own_address, removed_at_the_end
from tests.e2e.network_federation import Federation, assert_same_model, simulated
from tests.e2e.test_network_server import superlink_paths

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
    yield from joined(Hospital(machine, made, "east", 201))


@pytest.fixture(scope="module")
def north(machine: Machine, made: Federation, coordinator: Coordinator) -> Iterator[Hospital]:
    yield from joined(Hospital(machine, made, "north", 202))


def joined(hospital: Hospital) -> Iterator[Hospital]:
    with removed_at_the_end(hospital):
        print(f"{hospital.project}: {hospital.join():.1f} s from compose up to waiting for the federation")
        yield hospital


@pytest.mark.parametrize("service", ["supernode", "runner"])
def test_a_hospitals_containers_have_no_rights(east: Hospital, service: str) -> None:
    status = east.inside(service, "cat", "/proc/1/status").stdout
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert values["Uid"].split() == [str(UID)] * 4
    assert {values[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert values["NoNewPrivs"] == "1"
    assert "Read-only file system" in east.inside(service, "touch", "/opt/fedvox/x", check=False).stderr


def test_the_coordinators_containers_have_no_rights_and_a_read_only_root(coordinator: Coordinator) -> None:
    for service in ("server", "proxy"):
        status = coordinator.inside(service, "cat", "/proc/1/status").stdout
        assert "CapEff:\t0000000000000000" in status and f"Uid:\t{UID}" in status
        assert "Read-only" in coordinator.inside(service, "touch", "/opt/fedvox/x", check=False).stderr
    assert coordinator.inside("proxy", "ls", "/").stdout.split().count("state") == 1
    assert coordinator.inside("proxy", "ls", "-A", "/state").stdout == "", "the proxy keeps nothing"


REACH = """
import socket
for place in (("203.0.113.80", 80), ("1.1.1.1", 53), ("10.213.200.2", 9091), (%r, %d)):
    try:
        socket.create_connection(place, 3).close()
        print("reached", place)
    except OSError as error:
        print("not reached")
for name in ("deb.debian.org", "supernode", "proxy", "host.containers.internal.example"):
    try:
        print("resolved", socket.getaddrinfo(name, 80))
    except OSError:
        print("not resolved")
"""


def test_the_runner_has_no_way_out_and_no_names(east: Hospital, made: Federation) -> None:
    said = east.python("runner", REACH % (own_address(), made.port)).splitlines()
    assert said == ["not reached"] * 4 + ["not resolved"] * 4
    routes = east.inside("runner", "cat", "/proc/net/route").stdout.splitlines()[1:]
    assert [line.split()[1] for line in routes if line.strip()] == ["00C9D50A"], "its link, and no default route"
    interfaces = east.inside("runner", "ls", "/sys/class/net").stdout.split()
    assert sorted(interfaces) == ["eth0", "lo"]


def test_supernode_reaches_the_server_and_sees_no_scans(east: Hospital, made: Federation) -> None:
    mounts = east.inside("supernode", "cat", "/proc/mounts").stdout
    assert " /data " not in mounts and str(made.folder / "data") not in mounts
    assert east.inside("supernode", "ls", "-A", "/data").stdout == ""
    images = east.inside("supernode", "find", "/", "-xdev", "-name", "*.nii.gz", check=False).stdout
    assert images == ""
    code = f"import socket; socket.create_connection(({own_address()!r}, {made.port}), 5); print('reached')"
    assert east.python("supernode", code) == "reached"


def test_the_runner_may_not_write_to_the_scans_and_has_no_key(east: Hospital) -> None:
    assert "Read-only file system" in east.inside("runner", "touch", "/data/x", check=False).stderr
    assert east.inside("runner", "ls", "/data").stdout != ""
    assert east.inside("runner", "ls", "/kit").stdout.split() == ["federation.yaml", "kit.yaml", "plan.json"]
    assert "key:          is not here" in east.log("runner")


def test_no_secret_shows_in_environment_or_command_lines(east: Hospital, coordinator: Coordinator) -> None:
    for stack, services in ((east, ("supernode", "runner")), (coordinator, ("server", "proxy"))):
        for service in services:
            told = stack.machine.podman("inspect", stack.name(service)).stdout
            told += stack.inside(
                service, "sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'"
            ).stdout
            told += stack.log(service)
            assert "PRIVATE KEY" not in told
            assert bytes(range(32)).hex() not in told


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
import http.client, ssl
context = ssl.create_default_context(cafile="/kit/ca.crt")
for path in %r:
    connection = http.client.HTTPSConnection(%r, %d, context=context, timeout=20)
    connection.request("POST", path, b"", {"content-type": %r})
    print(connection.getresponse().status)
    connection.close()
"""


def test_a_hospital_reaches_no_control_path_through_the_proxy(east: Hospital, made: Federation) -> None:
    allowed = {f"/v1/fleet/{method}" for method in FLEET_METHODS}
    forbidden = sorted(path for path in superlink_paths() if path not in allowed)
    assert len(forbidden) > 50
    place = (own_address(), made.port, PROTOBUF_MEDIA_TYPE)
    assert set(east.python("supernode", ASK % (forbidden, *place)).split()) == {"403"}
    assert set(east.python("supernode", ASK % (sorted(allowed), *place)).split()) == {"401"}, "a signature is wanted"


def test_the_health_checks_find_everybody_well(east: Hospital, coordinator: Coordinator) -> None:
    assert east.healthy(["supernode", "runner"]) == {"supernode": True, "runner": True}
    assert coordinator.healthy(["server", "proxy"]) == {"server": True, "proxy": True}


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
    status = east.inside("supernode", "fedvox-client", "status", KIT, STATE).stdout
    assert ": connected" in status and "runs elsewhere" in status


def test_backup_and_restore_in_the_middle_give_the_model_of_a_simulation(
    north: Hospital, east: Hospital, coordinator: Coordinator, made: Federation, tmp_path: Path
) -> None:
    coordinator.wait_until(lambda: len(made.rounds()) >= 1, "server", "a round")
    with standing_still(north, made.site_pid("north", "runner")):
        # From here on as deploy/docs/backup.md says.
        coordinator.compose("stop", "server")
    assert len(made.rounds()) < 4, "the run is over already"
    coordinator.save("server", tmp_path / "state.tar", "tar", "-C", "/state", "-cf", "-", "run")
    coordinator.compose("down", "--volumes")
    coordinator.restore("server", tmp_path / "state.tar", "tar", "-C", "/state", "-xf", "-")
    coordinator.compose("up", "-d")
    coordinator.wait_until(lambda: not coordinator.is_running("server"), "server", "the end of the federation", 400)
    assert "report:" in coordinator.log("server"), coordinator.log("server")
    assert len(made.rounds()) == 4
    assert_same_model(coordinator.run, simulated(made, tmp_path / "simulated").path, 3)
    assert (coordinator.run / "model/model.safetensors").stat().st_size > 0
    for hospital in (east, north):
        assert "error codes" not in hospital.inside("runner", "fedvox-client", "audit", KIT, STATE, "--verify").stderr


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
