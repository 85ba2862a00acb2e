from pathlib import Path

import pytest

from client.web.place import Place
from tests.client.web.hospital import make_place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A site that has decided nothing yet."""
    return make_place(tmp_path)
