"""What the courier's tests share: one authority and one SuperLink for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.courier.kits import Kits
from tests.client.courier.superlink import SuperLink, superlink


@pytest.fixture(scope="session")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Kits:
    return Kits.make(tmp_path_factory.mktemp("kits"))


@pytest.fixture(scope="session")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with superlink(tmp_path_factory.mktemp("superlink")) as link:
        yield link
