from __future__ import annotations

from importlib.metadata import version

from server.release.software import installed_packages


def test_versions_are_those_that_are_installed() -> None:
    found = installed_packages()
    assert len(found) > 20
    for name in ("numpy", "pydantic", "fedvox"):
        assert found[name] == version(name)
    assert list(found) == sorted(found, key=str.lower)
