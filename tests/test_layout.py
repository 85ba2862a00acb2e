"""The arrows between packages and between rooms, and promises about the whole tree."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {"common": {"client", "server"}, "client": {"server"}, "server": {"client"}}
SIMULATION = "server/simulation/"
MODULES = [path for package in FORBIDDEN for path in sorted((REPOSITORY / package).rglob("*.py"))]
ROOMS = {
    "server": (
        *(
            "cli",
            "reporting/dossier",
            "export",
            "web",
            "comparison",
            "contributions",
            "simulation",
            "coordinator",
            "gateway",
            "provisioning",
            "rounds",
            "rounds/judgement",
            "rounds/strategies",
        ),
        *("reporting", "tracking", "progress", "release", "privacy", "run_store"),
    ),
    "client": (
        *("cli", "web", "site", "courier", "runner", "node", "ledger", "consent", "training", "inference", "data"),
        *("pacs", "deidentify"),
    ),
    "common": (
        "web",
        *("planning", "privacy", "config", "protocol", "models", "losses", "metrics", "weights", "imaging/phantoms"),
        *(
            "imaging/patches",
            "imaging/cache",
            "imaging/datasets",
            "imaging/io/dicom/labels",
            "imaging/io/dicom",
            "imaging/io",
            "imaging",
        ),
        *("plan",),
        *("audit", "certificates", "system"),
    ),
}
"""A room may import from the rooms after it, never from those before it; what is not listed imports from no room."""
NESTED = {
    "gateway/fleet": "gateway",
    "rounds/strategies/robust": "rounds/strategies",
    "courier/transfers": "courier",
    "inference/dicom": "inference",
    "pacs/archives": "pacs",
}
"""Parts of a room that is too large for one folder: for arrows they are that room."""
MOST_FILES = 15
MOST_LINES = 400


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
    wrong = {
        root for root in roots & FORBIDDEN[name.split("/")[0]] if not (name.startswith(SIMULATION) and root == "client")
    }
    assert not wrong


def room_of(module: str) -> str:
    """The longest listed room that a dotted module name lies in; empty for the top of its package."""
    package, *parts = module.split(".")
    for count in range(len(parts), 0, -1):
        name = "/".join(parts[:count])
        name = NESTED.get(name, name)
        if name in ROOMS[package]:
            return name
    return ""


def modules_imported(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports, at its top or anywhere inside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ROOMS}


def arrows_back(module: str, imported: set[str]) -> set[str]:
    """Those imports of a module that lead to a room before its own."""
    package, room = module.split(".")[0], room_of(module)
    order = ROOMS[package]
    others = {name: room_of(name) for name in imported if name.split(".")[0] == package}
    here = order.index(room) if room else len(order)
    return {name for name, other in others.items() if other and other != room and order.index(other) < here}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_rooms_import_only_from_rooms_after_them(path: Path) -> None:
    module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    assert not arrows_back(module, modules_imported(path))


def test_an_arrow_back_would_be_found() -> None:
    assert arrows_back("common.plan.plan", {"common.config.federation.FederationConfig"})
    assert arrows_back("server.formatting", {"server.rounds.round_loop.RoundLoop"})
    assert arrows_back("server.rounds.strategies.fedavg", {"server.rounds.round.Round"})
    assert not arrows_back("server.rounds.round", {"server.rounds.strategies.fedavg.FedAvg", "server.formatting"})
    assert not arrows_back("server.gateway.fleet.rules", {"server.gateway.identity.Site"})


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=lambda path: path.name)
def test_rooms_are_small_and_say_what_they_are_for(folder: Path) -> None:
    files = sorted(folder.glob("*.py"))
    assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files"
    purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert purpose and len(purpose.split()) >= 4


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_are_short_or_say_why_not(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    long_because = "longer than" in (ast.get_docstring(ast.parse(text)) or "")
    assert len(text.splitlines()) <= MOST_LINES or long_because


def test_tests_mirror_the_rooms() -> None:
    for package in ROOMS:
        for folder in (REPOSITORY / "tests" / package).rglob("*/"):
            name = folder.relative_to(REPOSITORY / "tests").as_posix()
            if folder.name != "__pycache__" and any(folder.glob("test_*.py")):
                assert (REPOSITORY / name / "__init__.py").exists(), f"tests/{name} mirrors no room"


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
