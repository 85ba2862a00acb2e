"""A disk that is really full: nothing half stays, and what came before goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.node.folders import NodeFolders, names_in
from client.node.incoming import Incoming
from client.pacs.receiver import OUT_OF_RESOURCES, NotStoredError
from common.errors import OutputError
from tests.client.node.studies import Clock, arrival, instances_in
from tests.dicom_series import make_series

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a disk of its own")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("keep_free", [0, 2**14])
def test_a_full_disk_is_told_to_the_sender(small_disk: Path, keep_free: int) -> None:
    folders = NodeFolders(small_disk / "state")
    with folders.locked():
        pass
    clock = Clock()
    incoming = Incoming(folders, 60, 10, keep_free, clock)
    kept, refused = set(), 0
    for one in [*make_series(), *make_series(), *make_series(), *make_series()]:
        try:
            incoming.keep(arrival(one))
        except OutputError:
            assert keep_free == 0
            refused += 1
        except NotStoredError as error:
            assert error.status == OUT_OF_RESOURCES
            refused += 1
        else:
            kept.add(one.SOPInstanceUID)
    assert kept and refused
    assert not names_in(folders.receiving)
    clock.now += 60
    incoming.settle()
    assert {uid for study in folders.waiting.iterdir() for uid in instances_in(study)} == kept
