"""Dockerfiles, compose files and systemd units, judged by the tools of their trades."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, program, said

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
    folder = units / "fedvox-runner.service.d"
    folder.mkdir()
    shutil.copy(DEPLOY / "systemd/examples/gpu.conf", folder)
    unit = units / "fedvox-runner.service"
    assert said(program("systemd-analyze", "systemd"), "verify", "--man=no", unit) == (0, "")
    assert exposure(unit)[0] <= LARGEST_EXPOSURE + 0.5


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
    assert not any("node.key" in value for value in settings("fedvox-runner.service", "LoadCredential"))
    assert any("/etc/fedvox/node.key" in value for value in settings("fedvox-runner.service", "InaccessiblePaths"))
    assert not settings("fedvox-supernode.service", "BindReadOnlyPaths")
    assert any("/srv/fedvox" in value for value in settings("fedvox-supernode.service", "InaccessiblePaths"))


def test_the_runner_reaches_the_supernodes_address_and_no_other() -> None:
    unit = "fedvox-runner.service"
    assert settings(unit, "IPAddressDeny") == ["any"]
    [allowed] = settings(unit, "IPAddressAllow")
    supernode = (DEPLOY / "systemd/fedvox-supernode.service").read_text(encoding="utf-8")
    assert f"--listen {allowed.removesuffix('/32')}:" in supernode
    assert settings(unit, "SocketBindAllow") == []
