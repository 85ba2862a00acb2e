"""Flower and the libraries under it are used as they are: nothing of them is changed, private names have one place.

Read from the syntax trees of all modules, so that it also holds for lines that no test runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "client", "server")
MODULES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
FOREIGN = (
    "flwr",
    "uvicorn",
    "starlette",
    "fastapi",
    "httpx",
    "granian",
    "google.protobuf",
    "opacus",
    "nibabel",
    "scipy",
)
PUBLIC = {"flwr.app", "flwr.serverapp", "flwr.clientapp", "flwr.simulation"}
DOORS = {"client/flower.py", "server/flower.py"}
"""The modules that import private names of Flower, and from which the others have them."""
DICTIONARY_CHANGES = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"}
ATTRIBUTE_CHANGES = {"setattr", "delattr", "__setattr__", "__delattr__"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def is_foreign(full: str | None) -> bool:
    doors = tuple(door.removesuffix(".py").replace("/", ".") for door in DOORS)
    return full is not None and any(full == root or full.startswith(f"{root}.") for root in (*FOREIGN, *doors))


class Names:
    """What the names of a module stand for: imports under their own or another name, and variables that are the same.

    A name that stands for something foreign anywhere in the module does so everywhere in it.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._full: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._learn(alias.asname or alias.name.split(".")[0], alias.name if alias.asname else None)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._learn(alias.asname or alias.name, f"{node.module}.{alias.name}")
        assignments = list(_assignments(tree))
        for _ in assignments:
            before = dict(self._full)
            for name, value in assignments:
                self._learn(name, self.full(value))
            if self._full == before:
                break

    def full(self, node: ast.expr) -> str | None:
        """The full name of what an expression stands for; None if it is no plain name."""
        if isinstance(node, ast.Name):
            return self._full.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.full(node.value)
            return None if base is None else f"{base}.{node.attr}"
        if isinstance(node, ast.Call):
            return _dynamic_import(node)
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and "modules" in ast.dump(node.value)
        ):
            return str(node.slice.value)
        return None

    def _learn(self, name: str, full: str | None) -> None:
        if full is None:
            self._full.setdefault(name, name)
        elif is_foreign(full) or not is_foreign(self._full.get(name)):
            self._full[name] = full


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value
        elif (
            isinstance(node, ast.For)
            and isinstance(node.target, ast.Name)
            and isinstance(node.iter, ast.Tuple | ast.List)
        ):
            yield from ((node.target.id, item) for item in node.iter.elts)


def _dynamic_import(call: ast.Call) -> str | None:
    """What ``import_module`` and ``__import__`` are given."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    if function in ("import_module", "__import__") and isinstance(first, ast.Constant):
        return str(first.value)
    return None


def _is_dictionary(node: ast.expr) -> bool:
    """Whether an expression is the dictionary behind an object: ``x.__dict__``, ``vars(x)``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "__dict__"
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "vars" and bool(node.args)


def changes(source: str) -> list[str]:
    """Places at which a module changes something foreign."""
    tree = ast.parse(source)
    names = Names(tree)
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.ImportFrom | ast.Import) and _changes(node, names)
    ]


def _changes(node: ast.AST, names: Names) -> bool:
    match node:
        case ast.Attribute(value=value, attr=attribute, ctx=ast.Store() | ast.Del()):
            return is_foreign(names.full(value)) or attribute == "__dict__"
        case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()):
            # Of whatever object: one of Flower's may come from anywhere.
            return _is_dictionary(value) or names.full(value) == "sys.modules"
        case ast.Call(func=function, args=arguments):
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            first = arguments[0] if arguments else None
            if called in ATTRIBUTE_CHANGES:
                owner = function.value if isinstance(function, ast.Attribute) else None
                return any(item is not None and is_foreign(names.full(item)) for item in (first, owner))
            return (
                called in DICTIONARY_CHANGES and isinstance(function, ast.Attribute) and _is_dictionary(function.value)
            )
        case ast.ImportFrom(module=module):
            return module in ("unittest.mock", "mock")
        case ast.Import(names=imported):
            return any(alias.name in ("unittest.mock", "mock") for alias in imported)
    return False


BAD = {
    "of a class": "from flwr.app import Message\nMessage.x = 1",
    "of a class under another name": "from flwr.app import Message as M\nM.x = 1",
    "of a module": "import flwr\nflwr.x = 1",
    "of a module in a package": "import flwr.app\nflwr.app.Message = None",
    "of a module under another name": "import flwr.common.constant as c\nc.x = 1",
    "of a module from a package": "from flwr.common import constant\nconstant.x = 1",
    "deep": "import flwr\nflwr.app.message.Message.x.y = 1",
    "augmented": "import httpx\nhttpx.x += 1",
    "annotated": "import httpx\nhttpx.x: int = 1",
    "deleted": "import httpx\ndel httpx.Client.x",
    "one of several": "import httpx\na, (httpx.x, b) = 1, (2, 3)",
    "the rest": "import httpx\na, *httpx.x = 1, 2",
    "in a loop": "import httpx\nfor httpx.x in (1, 2): pass",
    "in a with": "import httpx\nwith open('f') as httpx.x: pass",
    "setattr": "from flwr.supercore.task_identity import TaskIdentity\nsetattr(TaskIdentity, 'run_id', 1)",
    "setattr of builtins": "import builtins, httpx\nbuiltins.setattr(httpx, 'x', 1)",
    "delattr": "import httpx\ndelattr(httpx, 'x')",
    "object.__setattr__": "from flwr.app import Message\nobject.__setattr__(Message, 'x', 1)",
    "type.__setattr__": "from flwr.app import Message\ntype.__setattr__(Message, 'x', 1)",
    "its own __setattr__": "import httpx\nhttpx.__setattr__('x', 1)",
    "__dict__": "import uvicorn\nuvicorn.__dict__['x'] = 1",
    "__dict__ deleted": "import uvicorn\ndel uvicorn.__dict__['x']",
    "__dict__ of an object": "def f(message):\n    message.metadata.__dict__['_message_id'] = 'x'",
    "__dict__ updated": "import uvicorn\nuvicorn.__dict__.update(x=1)",
    "__dict__ replaced": "def f(message):\n    message.__dict__ = {}",
    "vars": "import uvicorn\nvars(uvicorn)['x'] = 1",
    "vars updated": "import uvicorn\nvars(uvicorn).update(x=1)",
    "a module of Python's table": "import sys\nsys.modules['flwr.app'] = None",
    "from Python's table": "import sys\nsys.modules['flwr.app'].Message = None",
    "by its name": "import importlib\nimportlib.import_module('flwr.app').Message = None",
    "by its name and a variable": "from importlib import import_module\nm = import_module('httpx')\nm.x = 1",
    "a variable": "from flwr.app import Message\nkind = Message\nkind.x = 1",
    "a variable of a variable": "from flwr.app import Message\na = Message\nb = a\nb.x = 1",
    "a variable that comes later": "from flwr.app import Message\ndef f():\n    k.x = 1\nk = Message",
    "each of some": "from flwr.app import Error, Message\nfor kind in (Error, Message):\n    kind.x = 1",
    "an expression": "from flwr.app import Message\nif (kind := Message):\n    kind.x = 1",
    "in a function": "def f():\n    import starlette.requests as r\n    r.Request.x = 1",
    "while types are checked": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fastapi\nfastapi.x = 1",
    "granian": "from granian.server import embed\nembed.Server.x = 1",
    "protobuf": "from google.protobuf import message\nmessage.Message.x = 1",
    "protobuf by its full name": "import google.protobuf.message\ngoogle.protobuf.message.x = 1",
    "what the one module hands on": "from client.flower import FleetHttpClient\nFleetHttpClient.x = 1",
    "the one module": "import server.flower\nserver.flower.Run.x = 1",
    "the one module, from its package": "from server import flower\nflower.Run = None",
    "a mock": "from unittest.mock import patch",
    "a mock under its full name": "import unittest.mock",
}
GOOD = {
    "an object of ours": "import httpx\nself.client = httpx.Client()\nself.client = None",
    "an object of theirs": "from client.flower import Node\nnode = Node()\nnode.node_id = 3",
    "a class of ours": "from flwr.clientapp import ClientApp\nclass App(ClientApp):\n    x = 1\nApp.y = 2",
    "another module": "import os\nos.environ['X'] = '1'\nos.x = 1",
    "a name that is read": "import flwr\nx = flwr.__version__",
    "a dictionary": "from flwr.app import RecordDict\nrecords = {}\nrecords['x'] = RecordDict()",
    "our own dictionary, read": "class A:\n    def f(self):\n        return self.__dict__ | {'x': 1}",
    "another google": "import google.auth\ngoogle.auth.x = 1",
    "setattr of ours": "import httpx\nsetattr(object(), 'x', httpx)",
    "another flower": "from garden import flower\nflower.x = 1",
}


@pytest.mark.parametrize("source", BAD.values(), ids=BAD)
def test_a_change_is_found(source: str) -> None:
    assert changes(source)


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD)
def test_what_is_no_change_is_none(source: str) -> None:
    assert changes(source) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_of_flower_and_the_libraries_under_it_is_changed(path: Path) -> None:
    assert changes(path.read_text(encoding="utf-8")) == []


def private_names(source: str) -> list[str]:
    """What a module takes from Flower that is not public."""
    tree = ast.parse(source)
    found, names = [], Names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("flwr.") and alias.name not in PUBLIC]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "flwr":
                found += [alias.name for alias in node.names if f"flwr.{alias.name}" not in PUBLIC]
            elif module.startswith("flwr.") and module not in PUBLIC:
                found.append(module)
            elif module in PUBLIC:
                found += [f"{module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Call):
            full = _dynamic_import(node)
            found += [full] if full is not None and full.split(".")[0] == "flwr" else []
        elif isinstance(node, ast.Attribute):
            full = names.full(node) or ""
            parts = full.split(".")
            is_public = full == "flwr.__version__" or ".".join(parts[:2]) in PUBLIC
            if parts[0] == "flwr" and (not is_public or any(part.startswith("_") for part in parts[2:])):
                found.append(full)
    return found


PRIVATE = {
    "a module": "import flwr.common",
    "a module under a public one": "import flwr.app.message",
    "a name": "from flwr.common.serde import message_to_proto",
    "a name of a module under a public one": "from flwr.app.message import make_message",
    "a package": "from flwr import common",
    "an attribute": "import flwr\nx = flwr.common.constant",
    "an attribute of a public module": "import flwr.app\nx = flwr.app._secret",
    "an underscore": "from flwr.app import _secret",
    "in a function": "def f():\n    from flwr.supercore.run import Run",
    "by its name": "from importlib import import_module\nx = import_module('flwr.common')",
}
PUBLIC_USES = {
    "all four": "import flwr.simulation\nfrom flwr import app, clientapp\nfrom flwr.serverapp import Grid",
    "the version": "import flwr\nx = flwr.__version__",
    "another library": "from flwrs.common import x\nimport common.flower",
    "what the one module hands on": "from client.flower import Node",
}


@pytest.mark.parametrize("source", PRIVATE.values(), ids=PRIVATE)
def test_a_private_name_is_found(source: str) -> None:
    assert private_names(source)


@pytest.mark.parametrize("source", PUBLIC_USES.values(), ids=PUBLIC_USES)
def test_a_public_name_is_none(source: str) -> None:
    assert private_names(source) == []


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) not in DOORS], ids=name_of)
def test_private_names_of_flower_are_imported_in_one_module_of_each_side(path: Path) -> None:
    assert private_names(path.read_text(encoding="utf-8")) == []


def imported_names(tree: ast.Module) -> list[str]:
    """Names that a door imports, as it calls them."""
    statements = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    return [alias.asname or alias.name for node in statements for alias in node.names]


def uncommented(source: str) -> list[str]:
    """First lines of groups of imports, between empty lines, that no comment precedes."""
    groups = [group.splitlines() for group in source.split("\n\n")]
    starts = [group[0] for group in groups if any(line.startswith(("from ", "import ")) for line in group)]
    return [line for line in starts if not line.startswith("# ") and line != "from __future__ import annotations"]


@pytest.mark.parametrize("door", sorted(DOORS))
def test_every_private_name_is_used_and_every_group_says_what_for(door: str) -> None:
    source = (REPOSITORY / door).read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = imported_names(tree)
    assert len(imported) > 3
    side = door.split("/")[0]
    used: set[str] = set()
    for path in sorted((REPOSITORY / side).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == f"{side}.flower":
                used |= {alias.name for alias in node.names}
    assert set(imported) - used == set()
    assert uncommented(source) == []
    [exported] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert sorted(exported) == sorted(imported)
    others = [node for node in tree.body if not isinstance(node, ast.ImportFrom | ast.Assign | ast.Expr)]
    assert others == [], "it imports and does nothing else"


def test_a_group_without_a_comment_is_found() -> None:
    good = "# What for.\nfrom flwr.a import b\nfrom flwr.c import d\n"
    assert uncommented(f"from __future__ import annotations\n\n{good}") == []
    assert uncommented(f"{good}\nfrom flwr.e import f\n") == ["from flwr.e import f"]


def test_one_side_does_not_use_the_door_of_the_other() -> None:
    for path in MODULES:
        side = name_of(path).split("/")[0]
        doors = {
            node.module
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module in ("client.flower", "server.flower")
        }
        assert doors <= {f"{side}.flower"}, path
