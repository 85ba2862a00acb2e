"""Dockerfiles, compose files and systemd units, judged by the tools of their trades."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, PLACES, program, said

pytestmark = pytest.mark.deploy

DOCKERFILES = sorted(DEPLOY.glob("**/Dockerfile*"))
COMPOSE_FILES = sorted([*DEPLOY.glob("**/compose*.yaml"), *DEPLOY.glob("**/docker-compose*.yaml")])
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ACCEPTED = {
    "DL3008": "a version of a Debian package that is written out is gone with its next security update",
    "SC2174": "mkdir -p -m: the mode is meant for the last folder alone",
}
LARGEST_EXPOSURE = 1.5
"""Of 10, by systemd's own count."""


def named(files: list[Path]) -> list[object]:
    missing = pytest.param(None, marks=pytest.mark.skip("there is none yet"), id="none")
    return [pytest.param(file, id=file.name) for file in files] or [missing]


@pytest.mark.parametrize("file", named(DOCKERFILES))
def test_dockerfiles_follow_good_practice(file: Path) -> None:
    accepted = [f"--ignore={rule}" for rule in ACCEPTED]
    status, text = said(program("hadolint", "extra deploy"), *accepted, file)
    assert status == 0, text


def test_a_careless_dockerfile_is_found(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && sudo true\n", encoding="utf-8")
    status, text = said(program("hadolint", "extra deploy"), tmp_path / "Dockerfile")
    assert status != 0
    assert {"DL3007", "DL3004"} <= set(text.replace(":", " ").split())


def compose_check(file: Path) -> tuple[int, str]:
    return said(program("check-jsonschema", "extra deploy"), "--builtin-schema", "vendor.compose-spec", file)


@pytest.mark.parametrize("file", named(COMPOSE_FILES))
def test_compose_files_follow_the_compose_schema(file: Path) -> None:
    status, text = compose_check(file)
    assert status == 0, text


def test_a_mistyped_compose_key_is_found(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services: {a: {image: b, read-only: true}}\n", encoding="utf-8")
    status, text = compose_check(file)
    assert status != 0
    assert "read-only" in text


NOTING_PODMAN = """\
#!/bin/sh
echo "$@" >>"$(dirname "$0")/commands"
case "$1" in
    --version) echo "podman version 4.3.1" ;;
    ps) echo "[]" ;;
esac
"""


def made_by_compose(folder: Path, *names: str) -> dict[str, str]:
    """Service -> the command by which podman-compose would make its container."""
    podman = folder / "podman"
    podman.write_text(NOTING_PODMAN, encoding="utf-8")
    podman.chmod(0o755)
    files = [option for name in names for option in ("-f", DEPLOY / name)]
    command = [program("podman-compose", "extra deploy"), "--in-pod=false", *files, "up", "-d"]
    names = ("FEDVOX_KIT", "FEDVOX_DATA", "FEDVOX_CONFIG", "FEDVOX_MODEL")
    environment = os.environ | dict.fromkeys(names, str(folder))
    environment["PATH"] = os.pathsep.join([str(folder), PLACES])
    subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    commands = (folder / "commands").read_text(encoding="utf-8").splitlines()
    made = [line for line in commands if line.split()[0] in ("create", "run")]
    found = {match[1]: line for line in made if (match := re.search(r"--name=fedvox-[a-z]+_([a-z]+)_1 ", line))}
    assert len(found) == len(made), made
    return found


def test_the_gpu_is_given_to_the_runner_alone_and_no_right_with_it(tmp_path: Path) -> None:
    made = made_by_compose(tmp_path, "site/compose.yaml", "site/compose.gpu.yaml")
    assert set(made) == {"courier", "runner"}
    assert re.findall(r"--device (\S+)", made["runner"]) == ["nvidia.com/gpu=0"]
    assert "nvidia" not in made["courier"] and "--device" not in made["courier"]
    assert "--network=none" in made["runner"]
    for line in made.values():
        assert "--cap-drop ALL" in line and "--read-only" in line and "no-new-privileges" in line
        assert "--privileged" not in line and "--cap-add" not in line


def mounts(command: str) -> dict[str, tuple[str, str]]:
    """Place in a container -> what is mounted there, and how."""
    folders = re.findall(r"-v (\S+?):(/[^:\s]*)(?::(\S+))? ", command)
    volumes = re.findall(r"--mount type=volume,source=([^,]+),destination=([^,\s]+)()", command)
    return {place: (what, how) for what, place, how in [*folders, *volumes]}


def test_scans_and_the_sites_key_meet_in_no_container(tmp_path: Path) -> None:
    made = made_by_compose(tmp_path, "site/compose.yaml")
    courier, runner = mounts(made["courier"]), mounts(made["runner"])
    assert "/kit/site.key" in courier and "/data" not in courier
    assert runner["/data"][1] == "ro" and not [place for place in runner if "site." in place or "ca." in place]
    common = {courier[place][0] for place in courier if courier[place] in runner.values() and "/kit" not in place}
    assert common == {"fedvox-site_shared"}


def test_gateway_and_server_share_a_network_that_outlives_both(tmp_path: Path) -> None:
    made = made_by_compose(tmp_path, "server/compose.yaml")
    assert {name for name, line in made.items() if "--network=container:" in line} == {"gateway", "server"}
    assert {name for name, line in made.items() if " -p " in line} == {"network"}
    assert "--entrypoint" in made["network"] and "sleep" in made["network"]
    assert " -v " not in made["network"]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as they are installed, but with programs that exist on this machine."""
    folder = tmp_path / "system"
    shutil.copytree(DEPLOY / "systemd", folder, ignore=shutil.ignore_patterns("examples"))
    for unit in folder.glob("*.service"):
        text = unit.read_text(encoding="utf-8")
        unit.write_text(text.replace("/opt/fedvox/bin/fedvox-", "/bin/true --fedvox-"), encoding="utf-8")
    return folder


def exposure(unit: Path) -> tuple[float, str]:
    """systemd's judgement of what a service could do to the machine: 0 is nothing, 10 everything."""
    status, text = said(program("systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager", unit)
    assert status == 0, text
    return float(text.rsplit("exposure level for", 1)[1].split(":")[1].split()[0]), text


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_units_are_sound_and_may_do_little(units: Path, name: str) -> None:
    status, text = said(program("systemd-analyze", "systemd"), "verify", "--man=no", units / name)
    assert (status, text.strip()) == (0, "")
    level, why = exposure(units / name)
    assert level <= LARGEST_EXPOSURE, why


def test_units_stay_hardened_with_a_gpu(units: Path) -> None:
    shutil.copy(DEPLOY / "systemd/examples/gpu.conf", units / "fedvox-runner.service.d")
    unit = units / "fedvox-runner.service"
    assert said(program("systemd-analyze", "systemd"), "verify", "--man=no", unit) == (0, "")
    assert exposure(unit)[0] <= LARGEST_EXPOSURE + 0.5


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_only_what_computes_may_set_how_threads_share_the_processors(units: Path, name: str) -> None:
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", "--json=short", units / name]
    (judged,) = (one for one in json.loads(said(*command)[1]) if one["name"] == "SystemCallFilter=~@resources")
    assert judged["set"] == (name not in ("fedvox-node.service", "fedvox-runner.service")), judged["description"]


@pytest.mark.parametrize("example", ["server-address.conf", "outbound-proxy.conf"])
def test_examples_for_the_courier_fit_its_unit(units: Path, example: str) -> None:
    folder = units / "fedvox-courier.service.d"
    folder.mkdir()
    unit = units / "fedvox-courier.service"
    open_to_all, _ = exposure(unit)
    shutil.copy(DEPLOY / "systemd/examples" / example, folder)
    assert said(program("systemd-analyze", "systemd"), "verify", "--man=no", unit) == (0, "")
    held = (folder / example).read_text(encoding="utf-8").splitlines().count("IPAddressDeny=any")
    assert exposure(unit)[0] < open_to_all if held else exposure(unit)[0] <= open_to_all


def test_a_mistyped_setting_and_a_forgotten_hardening_are_found(units: Path) -> None:
    unit = units / "fedvox-runner.service"
    unit.write_text(unit.read_text(encoding="utf-8").replace("IPAddressDeny", "IPAdressDeny"), encoding="utf-8")
    _, text = said(program("systemd-analyze", "systemd"), "verify", "--man=no", unit)
    assert "IPAdressDeny" in text
    shutil.rmtree(units / "fedvox-.service.d")
    assert exposure(unit)[0] > 5


def settings(unit: str, key: str) -> list[str]:
    lines = (DEPLOY / "systemd" / unit).read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def test_scans_and_the_sites_key_meet_in_no_unit() -> None:
    assert not settings("fedvox-runner.service", "LoadCredential")
    assert any("/etc/fedvox/site.key" in value for value in settings("fedvox-runner.service", "InaccessiblePaths"))
    assert not settings("fedvox-courier.service", "BindReadOnlyPaths")
    assert any("/srv/fedvox" in value for value in settings("fedvox-courier.service", "InaccessiblePaths"))


def test_the_runner_has_a_network_of_its_own_and_nobody_else_has() -> None:
    assert settings("fedvox-runner.service", "PrivateNetwork") == ["yes"]
    assert settings("fedvox-runner.service", "IPAddressDeny") == ["any"]
    assert not settings("fedvox-runner.service", "IPAddressAllow")
    for unit in ("fedvox-courier.service", "fedvox-gateway.service", "fedvox-server.service"):
        assert not settings(unit, "PrivateNetwork")


def test_courier_and_runner_share_one_folder_and_nothing_else() -> None:
    for unit in ("fedvox-courier.service", "fedvox-runner.service"):
        assert settings(unit, "ReadWritePaths") == ["/var/lib/fedvox-shared"]
        assert settings(unit, "UMask") == ["0007"]
        assert "--shared /var/lib/fedvox-shared" in (DEPLOY / "systemd" / unit).read_text(encoding="utf-8")
    courier, runner = (settings(f"fedvox-{half}.service", "StateDirectory") for half in ("courier", "runner"))
    assert not set(courier[0].split()) & set(runner[0].split())


def test_the_node_listens_on_one_port_and_sees_no_scans_for_training() -> None:
    assert settings("fedvox-node.service", "SocketBindDeny") == ["any"]
    assert settings("fedvox-node.service", "SocketBindAllow") == ["tcp:11112"]
    assert any("/srv/fedvox/scans" in value for value in settings("fedvox-node.service", "InaccessiblePaths"))


def test_the_node_starts_without_secrets() -> None:
    """What cannot be loaded ends a service with status 243, unless there is something to take its place."""
    loaded = {value.partition(":")[0] for value in settings("fedvox-node.service", "LoadCredential")}
    assert loaded == {value.partition(":")[0] for value in settings("fedvox-node.service", "SetCredential")} != set()


def test_the_nodes_container_has_no_rights_and_one_port(tmp_path: Path) -> None:
    made = made_by_compose(tmp_path, "node/compose.yaml", "node/compose.gpu.yaml")
    (line,) = made.values()
    assert "--cap-drop ALL" in line and "--read-only" in line and "no-new-privileges" in line
    assert re.findall(r" -p (\S+)", line) == ["0.0.0.0:11112:11112"]
    places = mounts(line)
    assert {place: how for place, (_, how) in places.items()} == {"/config": "ro", "/model": "ro", "/state": ""}
