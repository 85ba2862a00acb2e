"""The gateways that most tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.courier.superlink import superlink
from tests.server.gateway.lab import Lab, lab
from tests.server.gateway.node import World, join


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A gateway without a SuperLink, with the usual limits."""
    with lab(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A gateway whose limits are reached in a test's time."""
    limits = {"pause_seconds": 1, "grace_seconds": 2, "bytes_per_second": 2**22, "connections": 8, "signed_texts": 60}
    with lab(tmp_path_factory.mktemp("strict"), ("north", "south", "east", "west"), limits) as made:
        yield made


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway in front of a real SuperLink."""
    with superlink(tmp_path_factory.mktemp("superlink")) as link, lab(tmp_path_factory.mktemp("world")) as made:
        north, south = join(made, link, "north", "south")
        yield World(made, link, north, south)
