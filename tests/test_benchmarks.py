"""Benchmarks are run by hand and seldom: what they use must still be there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_run(name: str) -> None:
    assert callable(import_module(f"tests.benchmarks.{name}").main)
