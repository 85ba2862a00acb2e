"""A wheel, installed elsewhere, is complete: both commands start, and a report finds its templates."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.server.run_folder import write_run_folder

REPOSITORY = Path(__file__).resolve().parents[1]


def output_of(*command: object, **options: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, because building writes into the source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("server", "client", "common"):
        for file in (REPOSITORY / name).rglob("*"):
            if file.is_file() and file.suffix != ".pyc":
                copy = source / file.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    output_of(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    folder = wheel.parent / "installed"
    options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--target", folder)
    output_of(sys.executable, "-m", "pip", "install", *options, wheel)
    return folder


def test_a_wheel_has_all_modules_and_templates_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("server", "client", "common")
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in (".py", ".jinja") or path.name == "py.typed"
    }
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "deploy/"))]


@pytest.mark.parametrize("command", ["fedvox-server", "fedvox-client"])
def test_both_commands_start_elsewhere(installed: Path, tmp_path: Path, command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = output_of(sys.executable, installed / "bin" / command, "--help", cwd=tmp_path, env=environment)
    assert command in said


def test_a_report_finds_its_templates_elsewhere(installed: Path, tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = "import server; print(server.__file__)"
    assert output_of(sys.executable, "-c", where, cwd=tmp_path, env=environment).startswith(str(installed))
    output_of(sys.executable, installed / "bin/fedvox-server", "report", run, cwd=tmp_path, env=environment)
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")
