"""A node and those that mean it harm, or speak DICOM badly: what they send is no path, no line of a log and no end."""

import socket
from collections.abc import Iterator
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom.dimse_primitives import C_ECHO, C_FIND, C_STORE, N_ACTION

from client.node.folders import NodeFolders
from client.node.incoming import Incoming
from client.pacs.receiver import NOT_UNDERSTOOD, OTHER_KIND, AllowedPeer, Receiver, ReceiverSettings
from tests.client.node.studies import instances_in
from tests.client.pacs.test_receiver import call, calling, encoded, send_raw
from tests.dicom_series import MR, make_series

STRUCTURED_REPORT, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.7"
ACCEPTED, REJECTED, ABORTED = b"\2", b"\3", b"\7"
"""First byte of answers to a request for an association."""
SETTINGS = ReceiverSettings(
    "FEDVOX", "127.0.0.1", 0, (AllowedPeer("MODALITY", (ip_network("127.0.0.0/8"),)),), timeout_seconds=20
)


class Node:
    """What listens, and its folders."""

    def __init__(self, root: Path, receiver: Receiver) -> None:
        self.root, self.port = root, receiver.port

    def files(self) -> set[str]:
        """All names beside the state folder and in it, but for the folders that are always there."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()} - {"state/lock"}

    def takes(self) -> None:
        """Another peer is served."""
        (one,) = make_series()[:1]
        with calling(self.port) as association:
            assert send_raw(association, encoded(one), one.SOPInstanceUID) == 0
        assert instances_in(self.root / "state/incoming" / one.StudyInstanceUID) == {one.SOPInstanceUID}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folders = NodeFolders(tmp_path / "state")
    with folders.locked(), Receiver(SETTINGS, Incoming(folders, 60, 10, 0).keep) as receiver:
        yield Node(tmp_path, receiver)


@pytest.mark.parametrize(
    ("kind", "status"),
    # Of what is no class of the standard, the association ends.
    [(STRUCTURED_REPORT, OTHER_KIND), (SECONDARY_CAPTURE, OTHER_KIND), ("1.3.46.670589.5.0.3", None), ("../..", None)],
)
def test_what_is_no_image_of_a_volume_is_refused_and_leaves_nothing(node: Node, kind: str, status: int | None) -> None:
    (one,) = make_series(SOPClassUID=UID(kind))[:1]
    with calling(node.port) as association:
        assert send_raw(association, encoded(one), one.SOPInstanceUID, kind) == status
    assert not node.files()
    node.takes()


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("uid", ["../../escaped", "/escaped", "1.2/../../escaped", "1.2\x1b[2J"])
def test_no_uid_is_a_path(node: Node, keyword: str, uid: str, caplog: pytest.LogCaptureFixture) -> None:
    (one,) = make_series()[:1]
    setattr(one, keyword, UID(uid))
    with calling(node.port) as association:
        assert send_raw(association, encoded(one), one.SOPInstanceUID) == NOT_UNDERSTOOD
    assert not node.files() and not (node.root.parent / "escaped").exists()
    assert printable(caplog.text)
    node.takes()


def printable(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        ("ISO_IR 6", "../../escaped\x1b[2J"),
        ("ISO_IR 192", "\u202eescaped/../M\u00fcller" * 50),
        ("ISO_IR 100", "M\u00fcller/../../escaped"),
        ("ISO_IR 144", "\u041b\u044e\u043a/../../escaped"),
        ("\\ISO 2022 IR 87", "escaped\u5c71\u7530"),
        ("GB18030", "escaped\u738b\u5c0f\u6771"),
        ("no such set", "../../escaped"),
    ],
)
def test_no_text_is_a_path_or_in_a_log(
    node: Node, character_set: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (one,) = make_series(SpecificCharacterSet=character_set.split("\\"))[:1]
    for keyword in ("PatientID", "PatientName", "StudyID", "SeriesDescription", "AccessionNumber"):
        setattr(one, keyword, text)
    with calling(node.port) as association:
        assert send_raw(association, encoded(one), one.SOPInstanceUID) == 0
    assert node.files() == {f"state/incoming/{one.StudyInstanceUID}/instances/{one.SOPInstanceUID}.dcm"}
    assert "escaped" not in caplog.text and printable(caplog.text)


def item(kind: int, content: bytes) -> bytes:
    return bytes((kind, 0)) + len(content).to_bytes(2, "big") + content


def association_request(calling: bytes) -> bytes:
    """A request for an association, as bytes: no library sends such titles."""
    contexts = item(0x20, b"\1\0\0\0" + item(0x30, MR.encode()) + item(0x40, ExplicitVRLittleEndian.encode()))
    user = item(0x50, item(0x51, (2**14).to_bytes(4, "big")) + item(0x52, b"1.2.3"))
    titles = b"FEDVOX".ljust(16) + calling.ljust(16) + bytes(32)
    content = b"\0\1\0\0" + titles + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user
    return b"\1\0" + len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize("who", [b"STRANGER", b"modality", b"", b"\x1b[2J\nERROR forged", b"\xff\xfe"])
def test_an_ae_title_that_is_not_known_gets_nothing(node: Node, who: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answers = []
    for title in (b"MODALITY", who):
        with socket.create_connection(("127.0.0.1", node.port), timeout=20) as line:
            line.sendall(association_request(title))
            answers.append(line.recv(1))
    assert answers[0] == ACCEPTED and answers[1] in (REJECTED, ABORTED)
    assert printable(caplog.text) and "\nERROR forged" not in caplog.text
    assert not node.files()
    node.takes()


def test_a_pdu_longer_than_announced_ends_its_association_alone(node: Node) -> None:
    association = call(node.port)
    association.dul.socket.socket.sendall(b"\x04\0" + (SETTINGS.longest_pdu + 1).to_bytes(4, "big"))
    association.join(20)
    assert association.is_aborted and not node.files()
    node.takes()


def requests() -> list[C_ECHO | C_FIND | C_STORE | N_ACTION]:
    """What is no proper C-STORE under a context for images."""
    echo, find, store, act = C_ECHO(), C_FIND(), C_STORE(), N_ACTION()
    for one in (echo, find, store, act):
        one.MessageID = 1
    for one in (echo, find, store):
        one.AffectedSOPClassUID = UID(MR)
    find.Priority = store.Priority = 2
    find.Identifier = BytesIO(b"\x08\0\x52\0CS\x02\0  ")
    store.AffectedSOPInstanceUID = UID("1.2.3")  # without a data set
    act.RequestedSOPClassUID, act.RequestedSOPInstanceUID, act.ActionTypeID = UID(MR), UID("1.2.3"), 1
    return [echo, find, store, act]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("request_", requests(), ids=lambda one: type(one).__name__)
def test_what_is_no_c_store_stores_nothing(
    node: Node, request_: C_ECHO | C_FIND | C_STORE | N_ACTION, caplog: pytest.LogCaptureFixture
) -> None:
    association = call(node.port)
    (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == MR)
    association.dimse.send_msg(request_, context.context_id)
    node.takes()
    association.abort()
    assert not [one for one in node.files() if "1.2.3.dcm" in one]
    assert "Traceback" not in caplog.text
