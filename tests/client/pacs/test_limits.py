"""Archives that send too much, too large, or what nobody can decode."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import evt

from client.pacs.address import read_address
from client.pacs.archives.dimse_archive import receiver_settings
from client.pacs.peer import Peer
from client.pacs.receiver import AllowedPeer, Arrival, Receiver, ReceiverSettings
from client.pacs.sender import send_files
from client.pacs.study_import import RESERVE_BYTES
from tests.client.pacs.odd_archive import Answers, OddArchive
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study
from tests.client.pacs.test_odd_archives import import_from, prepared
from tests.dicom_series import save


@pytest.fixture
def small_disk(site: Site) -> Iterator[None]:
    """A disk with room for a small study, beside what an import leaves free."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a disk of its own")
    size = f"size={RESERVE_BYTES + 2**18}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(site.folder)], check=True)
    yield
    subprocess.run(["umount", str(site.folder)], check=True)


@pytest.mark.usefixtures("small_disk")
def test_a_study_that_is_larger_than_announced_fails_and_the_next_one_is_imported(site: Site, tmp_path: Path) -> None:
    def change(answer: Dataset) -> None:
        if "Rows" in answer:
            answer.Rows = answer.Columns = 1

    large, small = study("A1", 1, (20, 128, 128)), study("A2", 2)
    archive = OddArchive(prepared([*large, *small], tmp_path / "made"), change=change)
    first, second = import_from(site, archive, "A1", "A2")
    assert (first["outcome"], second["outcome"]) == ("failed", "imported")
    assert "less than 536,870,912 bytes would be free" in str(first["reason"])
    assert len(site.files) == 6


def test_an_answer_of_c_find_has_a_limit(site: Site, tmp_path: Path) -> None:
    def change(answer: Dataset) -> None:
        answer.PatientComments = "x" * 2**20

    archive = OddArchive(prepared(study("A1"), tmp_path / "made"), change=change)
    (result,) = import_from(site, archive, "A1")
    assert result["outcome"] == "failed"
    assert "a message of more than 1,048,576 bytes" in str(result["reason"])


@dataclass
class Garbling(OddArchive):
    """An archive whose answers to C-FIND are bytes that are no command."""

    command: bytes = b""

    def _find(self, event: evt.Event) -> Answers:
        value = struct.pack(">IB", len(self.command) + 1, 1) + self.command
        event.assoc.dul.socket.send(b"\x04\0" + struct.pack(">I", len(value)) + value)
        yield from ()


@pytest.mark.parametrize("command", [b"", b"\x03\0\0\0\x01\x02\0\0\0\x77\x77"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of a thread of pynetdicom
def test_nobody_waits_for_what_cannot_be_decoded(site: Site, tmp_path: Path, command: bytes) -> None:
    archive = Garbling(prepared(study("A1"), tmp_path / "made"), command=command)
    (result,) = import_from(site, archive, "A1", idle_seconds=3)
    assert result["outcome"] == "failed"


def test_a_store_for_c_move_has_the_limits_of_c_get(tmp_path: Path) -> None:
    path = tmp_path / "pacs.yaml"
    store = "retrieve: move\nstore: {address: 127.0.0.1, port: 104}\n"
    path.write_text("ae_title: A\nhost: 127.0.0.1\nport: 104\n" + store, encoding="utf-8")
    settings = receiver_settings(*read_address(str(path)))
    assert settings is not None
    assert (settings.longest_pdu, settings.largest_instance) == (131_072, 2**32)


def test_a_sender_is_heard_while_an_object_is_still_coming(tmp_path: Path) -> None:
    heard = []
    before: list[int] = []
    settings = ReceiverSettings("FEDVOX", "127.0.0.1", 0, (AllowedPeer("MODALITY", (ip_network("127.0.0.1"),)),))

    def keep(_: Arrival) -> None:
        before.append(len(heard))

    (path,) = save(tmp_path / "large", study("A1", 1, (1, 1024, 1024))).iterdir()
    with Receiver(settings, keep, lambda: heard.append(0)) as receiver:
        assert list(send_files(Peer("FEDVOX", "127.0.0.1", receiver.port, "MODALITY"), [path])) == [(path, "")]
    assert before[0] >= 2 * 2**20 // settings.longest_pdu
