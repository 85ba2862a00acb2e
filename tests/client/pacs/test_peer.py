"""Calling other application entities, of which some do what none should."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from client.pacs.peer import MOST_CONTEXTS, Peer, PeerError, associated, contexts_for, echo
from client.pacs.sender import send_files
from tests.client.pacs.relay import relay
from tests.dicom_series import CT, make_series, save
from tests.orthanc import Orthanc, private_network


def peer_of(orthanc: Orthanc, port: int = 0, seconds: float = 10) -> Peer:
    return Peer(orthanc.title, orthanc.host, port or orthanc.port, idle_seconds=seconds, total_seconds=60)


def test_a_peer_answers_an_echo_unless_it_is_called_by_another_name_or_is_not_there(orthanc: Orthanc) -> None:
    echo(peer_of(orthanc))
    with pytest.raises(PeerError, match=r"NOBODY@127.0.0.1:4242 refused the association: Called AE title not rec"):
        echo(replace(peer_of(orthanc), title="NOBODY"))
    with pytest.raises(PeerError, match=r"ORTHANC@127\.0\.0\.1:1 cannot be reached"):
        echo(peer_of(orthanc, port=1))
    with pytest.raises(PeerError, match="no address is known"):
        echo(replace(peer_of(orthanc), host="no.such.host.invalid"))


def test_nobody_waits_for_a_silent_peer() -> None:
    with private_network(), socket.create_server(("127.0.0.1", 0)) as server:
        silent = Peer("SILENT", "127.0.0.1", server.getsockname()[1], idle_seconds=0.3)
        with pytest.raises(PeerError, match=r"silent|in time"):
            echo(silent)


def test_an_association_that_ends_before_it_is_used_is_the_peers_problem() -> None:
    entity = AE("ODD")
    entity.add_supported_context(Verification)
    with private_network():
        server = entity.start_server(("127.0.0.1", 0), block=False)
        assert server is not None and server.socket is not None
        odd = Peer("ODD", "127.0.0.1", server.socket.getsockname()[1], idle_seconds=5)
        calling = associated(odd, [build_context(Verification)])
        with pytest.raises(PeerError, match="ended the association"), calling as (association, _):
            server.active_associations[0].abort()
            association.join()
            association.send_c_echo()
        server.shutdown()


@pytest.mark.parametrize("head", [b"\x02\0\xff\xff\xff\xff", b"\x02\0\0\0\0\x04abcd", b"HTTP/1.1 400 Bad Request"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of a thread of pynetdicom
def test_an_answer_that_is_none_or_promises_too_much_ends_the_call(head: bytes) -> None:
    with private_network(), socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(head)
                while connection.recv(2**16):
                    connection.sendall(b"\0" * 2**16)

        threading.Thread(target=answer, daemon=True).start()
        odd = Peer("ODD", "127.0.0.1", server.getsockname()[1], idle_seconds=30)
        with pytest.raises(PeerError, match=r"ended the connection|refused"):
            echo(odd)


@pytest.mark.parametrize("after_bytes", [0, 3, 100])
def test_nobody_waits_for_a_peer_that_stops_in_the_middle_of_an_answer(orthanc: Orthanc, after_bytes: int) -> None:
    with relay(orthanc.port, "silence", after_bytes) as port, pytest.raises(PeerError, match=r"silent|in time|reached"):
        echo(peer_of(orthanc, port, seconds=0.5))


def test_files_of_any_kind_are_sent_as_they_are_stored(orthanc: Orthanc, tmp_path: Path) -> None:
    files = []
    for number, (kind, syntax) in enumerate(
        [
            (MRImageStorage, ExplicitVRLittleEndian),
            (CT, ImplicitVRLittleEndian),
            (CT, DeflatedExplicitVRLittleEndian),
        ]
    ):
        files += sorted(save(tmp_path / str(number), make_series(kind=kind), syntax).iterdir())
    files += _compressed(tmp_path / "rle", RLELossless)
    answers = dict(send_files(peer_of(orthanc), files))
    assert answers == dict.fromkeys(files, "")
    assert (
        sum(len(study["Series"]) for study in map(orthanc.get, (f"/studies/{one}" for one in orthanc.get("/studies"))))
        == 4
    )
    assert orthanc.get("/statistics")["CountInstances"] == len(files)


def _compressed(folder: Path, syntax: str) -> list[Path]:
    save(folder, make_series())
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    return sorted(folder.iterdir())


def test_a_file_that_a_peer_does_not_take_is_named_and_the_others_are_sent(orthanc: Orthanc, tmp_path: Path) -> None:
    good, bad = save(tmp_path / "good", make_series()[:1]), save(tmp_path / "bad", make_series()[:1])
    (bad_file,) = bad.iterdir()
    content = bad_file.read_bytes()
    private = b"1.2.3.4.5.6.7.8.9.0.1.2.34"
    bad_file.write_bytes(content.replace(MRImageStorage.encode() + b"\0", private[: len(MRImageStorage) + 1]))
    (good_file,) = good.iterdir()
    answers = dict(send_files(peer_of(orthanc), [bad_file, good_file]))
    assert answers[good_file] == ""
    assert answers[bad_file]


def test_a_kind_that_a_peer_does_not_take_is_a_problem_of_its_files_even_alone(tmp_path: Path) -> None:
    (image,) = save(tmp_path / "mr", make_series()[:1]).iterdir()
    (other,) = save(tmp_path / "ct", make_series(kind=CT)[:1]).iterdir()
    damaged = tmp_path / "damaged.dcm"
    content = image.read_bytes()
    damaged.write_bytes(content[: content.index(b"\x08\0\x18\0UI")])  # before the UID of the instance
    entity = AE("ODD")
    entity.add_supported_context(MRImageStorage)
    with private_network():
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
        odd = Peer("ODD", "127.0.0.1", server.server_address[1], idle_seconds=10)
        try:
            assert dict(send_files(odd, [other])) == {other: "the peer accepts no objects of this kind"}
            answers = dict(send_files(odd, [tmp_path / "missing.dcm", damaged, other, image]))
            assert [path for path, problem in answers.items() if not problem] == [image]
            with pytest.raises(PeerError, match="supports nothing"):
                echo(odd)
        finally:
            server.shutdown()


def test_files_that_were_not_answered_are_not_reported_as_sent(orthanc: Orthanc, tmp_path: Path) -> None:
    files = sorted(save(tmp_path / "one", make_series()).iterdir())
    answered = []
    with relay(orthanc.port, "close", after_bytes=600) as port, pytest.raises(PeerError, match="ended the association"):
        for path, problem in send_files(peer_of(orthanc, port), files):
            assert problem == ""
            answered.append(path)
    assert answered == files[: len(answered)]
    assert 0 < len(answered) < len(files)


def test_compressed_syntaxes_have_contexts_of_their_own_and_there_are_never_too_many() -> None:
    kinds = [(CTImageStorage, one) for one in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless)]
    contexts = contexts_for([*kinds, (MRImageStorage, JPEG2000Lossless)])
    assert [(one.abstract_syntax, one.transfer_syntax) for one in contexts] == [
        (CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]),
        (CTImageStorage, [JPEG2000Lossless]),
        (MRImageStorage, [JPEG2000Lossless]),
    ]
    assert len(contexts_for([(f"1.2.{number}", RLELossless) for number in range(300)])) == MOST_CONTEXTS
