"""Receiver: real senders store, strangers and hostile peers do not, and neither keeps it from going on."""

import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from client.pacs.address import is_uid
from client.pacs.bounded_socket import Frames, server_context
from client.pacs.landing import land
from client.pacs.receiver import (
    CONNECTIONS_PER_ASSOCIATION,
    FAILED,
    MISMATCH,
    NOT_UNDERSTOOD,
    OTHER_KIND,
    OUT_OF_RESOURCES,
    AllowedPeer,
    Arrival,
    NotStoredError,
    Receiver,
    ReceiverSettings,
    supported_contexts,
)
from common.errors import ConfigError, OutputError
from server.provisioning.certificate_authority import Authority
from tests.dicom_series import MR, make_series, need_tool, save
from tests.mutual_tls import write_server, write_site

VERIFICATION = "1.2.840.10008.1.1"
LOOPBACK = (ip_network("127.0.0.0/8"),)
SETTINGS = ReceiverSettings("FEDVOX", "127.0.0.1", 0, (AllowedPeer("MODALITY", LOOPBACK),), timeout_seconds=20)


@contextmanager
def receiving(
    folder: Path, settings: ReceiverSettings = SETTINGS, keep: Callable[[Arrival], None] | None = None
) -> Iterator[Receiver]:
    """A receiver that lands instances in a folder, under their UIDs."""

    def into_folder(arrival: Arrival) -> None:
        landed = land(arrival, folder)
        landed.path.rename(folder / f"{landed.uid}.dcm")

    folder.mkdir(exist_ok=True)
    with Receiver(settings, keep or into_folder) as receiver:
        yield receiver


def call(
    port: int,
    syntax: str = ExplicitVRLittleEndian,
    calling: str = "MODALITY",
    called: str = "FEDVOX",
    tls: ssl.SSLContext | None = None,
) -> Association:
    entity = AE(calling)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(VERIFICATION)
    entity.add_requested_context(MR, syntax)
    return entity.associate("127.0.0.1", port, ae_title=called, tls_args=(tls, "localhost") if tls else None)


@contextmanager
def calling(port: int, syntax: str = ExplicitVRLittleEndian) -> Iterator[Association]:
    association = call(port, syntax)
    assert association.is_established
    try:
        yield association
    finally:
        association.release()


def require_alive(port: int) -> None:
    with calling(port) as association:
        assert association.send_c_echo().Status == 0


def encoded(one: Dataset) -> bytes:
    """The data set as it travels, without meta information."""
    content = encode(one, is_implicit_vr=False, is_little_endian=True)
    assert content is not None
    return content


def send_raw(association: Association, content: bytes, uid: str, kind: str = MR) -> int | None:
    """The status for an instance whose parts need not fit."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(kind), UID(uid)
    request.DataSet = BytesIO(content)
    (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == MR)
    association._reactor_checkpoint.clear()  # else the thread of the association may take the answer
    while not association._is_paused:
        pass
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return None if answer is None else answer.Status


def test_dcmtk_stores_a_series_as_it_is(tmp_path: Path) -> None:
    source = save(tmp_path / "source", make_series())
    with receiving(tmp_path / "got") as receiver:
        who = ["-aet", "MODALITY", "-aec", "FEDVOX", "127.0.0.1", str(receiver.port)]
        subprocess.run([need_tool("echoscu"), *who], check=True, timeout=60)
        subprocess.run([need_tool("storescu"), "+sd", *who, str(source)], check=True, timeout=60)
    sent = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, source.iterdir())}
    got = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, (tmp_path / "got").iterdir())}
    assert got == sent
    assert {path.stem for path in (tmp_path / "got").iterdir()} == set(sent)


@pytest.mark.parametrize(("program", "option"), [("dcmcjpeg", "-xs"), ("dcmcrle", "-xr"), ("dcmcjpls", "-xt")])
def test_dcmtk_stores_compressed_pixels_as_they_are(tmp_path: Path, program: str, option: str) -> None:
    plain = save(tmp_path / "plain", make_series()[:1]) / "000.dcm"
    packed = tmp_path / "packed.dcm"
    subprocess.run([need_tool(program), plain, packed], check=True, timeout=60)
    with receiving(tmp_path / "got") as receiver:
        who = ["-aet", "MODALITY", "-aec", "FEDVOX", "127.0.0.1", str(receiver.port)]
        subprocess.run([need_tool("storescu"), option, *who, str(packed)], check=True, timeout=60)
    (path,) = (tmp_path / "got").iterdir()
    sent, got = pydicom.dcmread(packed), pydicom.dcmread(path)
    assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert got.PixelData == sent.PixelData


def test_takes_all_storage_classes_in_all_transfer_syntaxes() -> None:
    offered = {context.abstract_syntax: set(context.transfer_syntax) for context in supported_contexts()}
    storage = {context.abstract_syntax for context in AllStoragePresentationContexts}
    assert set(offered) == storage | {VERIFICATION}
    assert all(syntaxes == set(ALL_TRANSFER_SYNTAXES) for syntaxes in offered.values())


@pytest.mark.parametrize(("who", "whom"), [("STRANGER", "FEDVOX"), ("MODALITY", "OTHER")])
def test_rejects_whom_it_does_not_know(tmp_path: Path, who: str, whom: str) -> None:
    with receiving(tmp_path / "got") as receiver:
        assert call(receiver.port, calling=who, called=whom).is_rejected
        require_alive(receiver.port)


def test_rejects_an_ae_title_from_the_address_of_another(tmp_path: Path) -> None:
    peers = (*SETTINGS.peers, AllowedPeer("PACS", (ip_network("10.0.0.0/8"),)))
    with receiving(tmp_path / "got", replace(SETTINGS, peers=peers)) as receiver:
        assert call(receiver.port, calling="PACS").is_rejected
        require_alive(receiver.port)


def test_closes_connections_from_unknown_addresses(tmp_path: Path) -> None:
    peers = (AllowedPeer("MODALITY", (ip_network("10.0.0.0/8"),)),)
    with receiving(tmp_path / "got", replace(SETTINGS, peers=peers)) as receiver:
        assert not call(receiver.port).is_established
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as line:
            assert not line.recv(1)


def test_refuses_more_associations_than_allowed_and_goes_on(tmp_path: Path) -> None:
    with receiving(tmp_path / "got", replace(SETTINGS, most_associations=2)) as receiver:
        with calling(receiver.port), calling(receiver.port):
            assert call(receiver.port).is_rejected
        require_alive(receiver.port)


def test_a_flood_of_silent_connections_is_closed(tmp_path: Path) -> None:
    with receiving(tmp_path / "got", replace(SETTINGS, most_associations=2)) as receiver, ExitStack() as lines:
        for _ in range(2 * CONNECTIONS_PER_ASSOCIATION):
            lines.enter_context(socket.create_connection(("127.0.0.1", receiver.port), timeout=20))
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as one_more:
            assert not one_more.recv(1)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\0\xff\xff\xff\xff", b"\x04\0\0\0\0\x04zzzz", bytes(96)]
)
def test_garbage_ends_the_connection_only(tmp_path: Path, garbage: bytes) -> None:
    with receiving(tmp_path / "got") as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as line:
            line.sendall(garbage)
            while line.recv(100):
                pass
        require_alive(receiver.port)


def test_a_pdu_longer_than_announced_ends_the_association(tmp_path: Path) -> None:
    with receiving(tmp_path / "got") as receiver:
        association = call(receiver.port)
        line = association.dul.socket.socket
        line.sendall(b"\x04\0" + (SETTINGS.longest_pdu + 1).to_bytes(4, "big"))
        association.join(20)
        assert association.is_aborted
        require_alive(receiver.port)


def pdv(content: bytes, control: int = 3, context: int = 1) -> bytes:
    """A PDU with one presentation data value."""
    item = (len(content) + 2).to_bytes(4, "big") + bytes((context, control)) + content
    return b"\x04\0" + len(item).to_bytes(4, "big") + item


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "message",
    [
        pdv(b""),
        pdv(b"\xff" * 20),
        pdv(b"\0\0\0\x01\x02\0\0\0\x77\x77"),  # an unknown command
        pdv(b"\0\0\0\x01\x02\0\0\0\x30\0", context=201),
        pdv(b"data before a command", control=2),
        b"\x04\0\0\0\0\x05\0\0\0\x01\x01",
        b"\x04\0\0\0\0\x05\xff\xff\xff\xff\x01",
    ],
)
def test_a_message_that_is_none_ends_its_association_only(tmp_path: Path, message: bytes) -> None:
    with receiving(tmp_path / "got") as receiver:
        association = call(receiver.port)
        association.dul.socket.socket.sendall(message)
        association.join(20)
        assert association.is_aborted
        require_alive(receiver.port)


def test_a_flood_of_refusals_is_not_a_flood_of_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peers = (AllowedPeer("MODALITY", (ip_network("10.0.0.0/8"),)),)
    with receiving(tmp_path / "got", replace(SETTINGS, peers=peers)) as receiver:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as line:
                assert not line.recv(1)
    assert 1 <= caplog.text.count("refused a connection from 127.0.0.1") < 50


def test_a_pdu_must_come_in_time() -> None:
    frames = Frames(longest_pdu=100, seconds=-1)
    with pytest.raises(TimeoutError):
        frames.follow(b"\x04\0")
    patient = Frames(longest_pdu=100, seconds=1000)
    for piece in (b"\x04\0", b"\0\0\0\x03", b"ab", b"c", b"\x05\0\0\0\0\0", b"\x04\0\0\0\0\x64"):
        assert patient.follow(piece) == piece
    with pytest.raises(OSError, match="too long"):
        Frames(longest_pdu=100, seconds=1000).follow(b"\x04\0\0\0\0\x65")


def test_too_large_an_instance_ends_the_association(tmp_path: Path) -> None:
    with receiving(tmp_path / "got", replace(SETTINGS, largest_instance=2**16, longest_pdu=2**14)) as receiver:
        with calling(receiver.port) as association:
            for one in make_series()[:2]:  # each below the limit, together above
                one.PixelData = bytes(2**15 + 2**14)
                assert send_raw(association, encoded(one), one.SOPInstanceUID) == 0
        (large,) = make_series()[:1]
        large.PixelData = bytes(2**17)
        association = call(receiver.port)
        assert send_raw(association, encoded(large), large.SOPInstanceUID) is None
        require_alive(receiver.port)
    assert len(list((tmp_path / "got").iterdir())) == 2


def spoilt(**values: str) -> tuple[bytes, str]:
    (one,) = make_series()[:1]
    uid = one.SOPInstanceUID
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return encoded(one), uid


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"StudyInstanceUID": "../../etc"}, NOT_UNDERSTOOD),
        ({"StudyInstanceUID": ".."}, NOT_UNDERSTOOD),
        ({"SeriesInstanceUID": "1.2/3"}, NOT_UNDERSTOOD),
        ({"SOPInstanceUID": "1.2.3"}, MISMATCH),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, MISMATCH),
    ],
)
def test_refuses_what_contradicts_or_may_be_a_path(tmp_path: Path, values: dict[str, str], status: int) -> None:
    refuses(tmp_path, *spoilt(**values), status)


@pytest.mark.parametrize("uid", ["../../../etc/passwd", "1.2.3"])
def test_refuses_what_cannot_be_identified(tmp_path: Path, uid: str) -> None:
    content = b"no DICOM at all, but text of some length" if uid == "1.2.3" else spoilt()[0]
    refuses(tmp_path, content, uid, NOT_UNDERSTOOD)


def refuses(folder: Path, content: bytes, uid: str, status: int) -> None:
    """An instance is refused with a status, and the next one received."""
    with receiving(folder / "got") as receiver, calling(receiver.port) as association:
        assert send_raw(association, content, uid) == status
        content, uid = spoilt()
        assert send_raw(association, content, uid) == 0
    assert [path.name for path in (folder / "got").iterdir()] == [f"{uid}.dcm"]
    assert {path.name for path in folder.iterdir()} == {"got"}


@pytest.mark.parametrize("text", ["", "1", ".", "..", "1..2", ".1.2", "1.2.", "1.2\n", "1." + 63 * "2", "१.२", "1/2.3"])
def test_a_uid_is_digits_and_dots(text: str) -> None:
    assert not is_uid(text)


def test_generated_uids_are_uids() -> None:
    assert is_uid(generate_uid()) and is_uid("1." + 62 * "2")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OutputError("no space"), OUT_OF_RESOURCES),
        (NotStoredError(OTHER_KIND, "no image"), OTHER_KIND),
        (ValueError("a bug"), FAILED),
    ],
)
def test_answers_errors_with_a_status_and_goes_on(tmp_path: Path, error: Exception, status: int) -> None:
    def refuse(arrival: Arrival) -> None:
        raise error

    with receiving(tmp_path, keep=refuse) as receiver:
        with calling(receiver.port) as association:
            assert association.send_c_store(make_series_with_meta()).Status == status
        require_alive(receiver.port)


def make_series_with_meta() -> Dataset:
    (one,) = make_series()[:1]
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return one


def test_leaves_some_of_the_disk_free(tmp_path: Path) -> None:
    content, uid = spoilt()
    arrival = Arrival(MR, uid, "MODALITY", content)
    with pytest.raises(NotStoredError) as refused:
        land(arrival, tmp_path, keep_free=2**60)
    assert refused.value.status == OUT_OF_RESOURCES
    assert not list(tmp_path.iterdir())


def test_prefers_what_needs_no_decoder(tmp_path: Path) -> None:
    entity = AE("MODALITY")
    entity.add_requested_context(MR, ["1.2.840.10008.1.2", RLELossless, ExplicitVRLittleEndian])
    with receiving(tmp_path / "got") as receiver:
        association = entity.associate("127.0.0.1", receiver.port, ae_title="FEDVOX")
        assert [one.transfer_syntax for one in association.accepted_contexts] == [[ExplicitVRLittleEndian]]
        association.release()


def test_compressed_syntaxes_are_agreed_on(tmp_path: Path) -> None:
    with receiving(tmp_path / "got") as receiver, calling(receiver.port, RLELossless) as association:
        (context,) = (one for one in association.accepted_contexts if one.abstract_syntax == MR)
        assert context.transfer_syntax == [RLELossless]


@pytest.fixture
def kits(tmp_path: Path) -> tuple[Path, Path]:
    authority = Authority.create("test")
    return write_server(tmp_path / "server", authority), write_site(tmp_path / "site", authority)


def test_tls_wants_a_certificate_of_every_peer(tmp_path: Path, kits: tuple[Path, Path]) -> None:
    server, site = kits
    tls = server_context(server / "server.crt", server / "server.key", server / "ca.crt")
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(tmp_path / "got", replace(SETTINGS, tls=tls)))
        # One that begins no handshake keeps nobody from calling.
        stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), timeout=20))
        context = ssl.create_default_context(cafile=str(server / "ca.crt"))
        assert not call(receiver.port, tls=context).is_established
        assert not call(receiver.port).is_established
        context.load_cert_chain(site / "site.crt", site / "site.key")
        association = call(receiver.port, tls=context)
        assert association.is_established
        content, uid = spoilt()
        assert send_raw(association, content, uid) == 0
        association.release()
    assert (tmp_path / "got" / f"{uid}.dcm").exists()


def test_dcmtk_stores_over_tls(tmp_path: Path, kits: tuple[Path, Path]) -> None:
    server, site = kits
    source = save(tmp_path / "source", make_series()[:2])
    tls = server_context(server / "server.crt", server / "server.key", server / "ca.crt")
    with receiving(tmp_path / "got", replace(SETTINGS, tls=tls)) as receiver:
        who = ["-aet", "MODALITY", "-aec", "FEDVOX", "127.0.0.1", str(receiver.port), str(source)]
        keys = ["+tls", str(site / "site.key"), str(site / "site.crt"), "+cf", str(site / "ca.crt")]
        subprocess.run([need_tool("storescu"), "+sd", *keys, *who], check=True, timeout=60)
        assert subprocess.run([need_tool("storescu"), "+sd", *who], capture_output=True, timeout=60).returncode != 0
    assert len(list((tmp_path / "got").iterdir())) == 2


def test_files_for_tls_that_cannot_be_used_are_named(tmp_path: Path, kits: tuple[Path, Path]) -> None:
    server, _ = kits
    bad = tmp_path / "bad.pem"
    with pytest.raises(ConfigError, match=r"bad\.pem: there is no such file"):
        server_context(bad, server / "server.key", server / "ca.crt")
    bad.write_text("none")
    with pytest.raises(ConfigError, match=r"bad\.pem"):
        server_context(bad, server / "server.key", server / "ca.crt")
    with pytest.raises(ConfigError, match=r"bad\.pem: holds no certificates"):
        server_context(server / "server.crt", server / "server.key", bad)


def test_port_monitors_and_silent_peers_take_no_association_away(tmp_path: Path) -> None:
    with receiving(tmp_path / "got", replace(SETTINGS, most_associations=1)) as receiver, ExitStack() as open_ones:
        for _ in range(2):
            socket.create_connection(("127.0.0.1", receiver.port)).close()
        for _ in range(2):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))
        require_alive(receiver.port)
