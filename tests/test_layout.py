"""The arrows between packages, and promises about the whole tree."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {"common": {"client", "server"}, "client": {"server"}, "server": {"client"}}
EXCEPTIONS = {("server/simulation/simulated_sites.py", "client")}
MODULES = [path for package in FORBIDDEN for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_packages_import_only_what_they_may(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    roots = {module.split(".")[0] for module in imports(path)}
    wrong = {root for root in roots & FORBIDDEN[name.split("/")[0]] if (name, root) not in EXCEPTIONS}
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_is_unpickled(path: Path) -> None:
    modules = imports(path)
    assert not {module for module in modules if module.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib"}}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loads = [
        node.func.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "load"
        and isinstance(node.func.value, ast.Name)
    ]
    assert "torch" not in loads


def test_every_runtime_dependency_has_a_reason_and_an_exact_version() -> None:
    lines = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    listed = [line.strip() for line in lines if line.strip().startswith('"') and ">=" in line]
    listed = [line for line in listed if "setuptools" not in line]
    assert len(listed) > 12
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    for line in listed:
        assert "#" in line, f"no reason: {line}"
        name = line[1:].split(">=")[0].split("[")[0].lower()
        assert name in pinned, f"{name} has no exact version"
