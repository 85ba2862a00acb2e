from pathlib import Path

import pytest

from common.web.shell import Shell
from tests.common.web.side import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def shell(place: Place) -> Shell:
    return place.shell()
