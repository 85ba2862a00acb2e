"""Messages with large pieces against protobuf's own."""

from __future__ import annotations

import httpx
import pytest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import example, given
from hypothesis import strategies as st

from common import large_objects
from common.large_objects import LARGE, Frames, PulledObject, PushedObject, frames_of, read_message

PIECE = bytes(range(256)) * 1024
HEAD = {"node": Node(node_id=2**63 + 5), "run_id": 7, "object_id": "ab" * 32, "session_id": "s"}
sizes = st.sampled_from([0, 1, LARGE - 9, LARGE, LARGE + 1, 2**21 - 1, 2**21])


def whole(frames: object) -> bytes:
    return b"".join(frames)  # type: ignore[arg-type]


@given(sizes, st.integers(0, 2**64 - 1), st.text(max_size=80))
def test_a_request_is_protobufs(size: int, run: int, name: str) -> None:
    content = (PIECE * 9)[:size]
    expected = PushObjectRequest(run_id=run, object_id=name, object_content=content)
    ours = PushedObject(PushObjectRequest(run_id=run, object_id=name), content[:100], memoryview(content)[100:])
    sent = whole(ours.SerializeToString(deterministic=True))
    assert PushObjectRequest.FromString(sent) == expected
    assert len(sent) == expected.ByteSize()
    for form in (sent, expected.SerializeToString()):
        read = read_message(PushObjectRequest, form)
        assert (read.run_id, read.object_id, read.object_content) == (run, name, content)
        assert isinstance(read, PushedObject) == (len(form) >= LARGE and size > 0)


@given(sizes, st.booleans(), st.booleans())
def test_an_answer_is_protobufs(size: int, found: bool, available: bool) -> None:
    content = (PIECE * 9)[:size]
    expected = PullObjectResponse(object_found=found, object_available=available, object_content=content)
    ours = PulledObject(found, available, content)
    assert whole(frames_of(ours)) == ours.SerializeToString() == expected.SerializeToString()
    read = PulledObject()
    assert read.ParseFromString(expected.SerializeToString()) == expected.ByteSize()
    assert (read.object_found, read.object_available, read.object_content) == (found, available, content)


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


FORMS = {
    "the piece first": field(4, PIECE) + field(3, b"name") + b"\x10\x07",
    "twice, the last counts": field(4, PIECE) + field(4, PIECE[::-1]),
    "another field twice": field(3, b"one") + field(4, PIECE) + field(3, b"two"),
    "a field that nobody knows": field(9, b"?") + field(4, PIECE) + b"\x78\x01",
    "a field of a high number": b"\xfa\x01\x01?" + field(4, PIECE),
    "fixed numbers": b"\x49" + bytes(8) + field(4, PIECE) + b"\x4d" + bytes(4),
    "a group": b"\x4b" + field(4, PIECE) + b"\x4c",
    "the field as a number": b"\x20\x05" + field(4, PIECE),
    "only as a number": b"\x20\x05" + field(3, b"name" * LARGE),
    "many fields": b"\x10\x07" * 40 + field(4, PIECE),
    "a length in more bytes than it needs": b"\x22" + b"\x80\x80\x90\x80\x00" + PIECE,
    "a length of five": b"\x22\x05hello" + field(3, b"x" * LARGE),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_the_form_it_is_read_as_protobuf_reads_it(form: str) -> None:
    data = FORMS[form]
    expected, read = PushObjectRequest.FromString(data), read_message(PushObjectRequest, data)
    for name in ("object_content", "object_id", "run_id", "session_id"):
        assert getattr(read, name) == getattr(expected, name)


GOOD = PushObjectRequest(object_content=PIECE, **HEAD).SerializeToString()


@given(st.integers(0, 120), st.integers(0, 255), st.booleans())
@example(0, 0, False)
def test_what_is_damaged_is_read_as_protobuf_reads_it_or_not_at_all(place: int, value: int, cut: bool) -> None:
    data = GOOD[: len(GOOD) - place] if cut else GOOD[:place] + bytes([value]) + GOOD[place + 1 :]
    try:
        expected = PushObjectRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            read_message(PushObjectRequest, data)
        return
    read = read_message(PushObjectRequest, data)
    for name in ("node", "run_id", "object_id", "object_content", "session_id"):
        assert getattr(read, name) == getattr(expected, name)


def test_a_piece_is_not_copied_on_its_way_out() -> None:
    frames = list(PushedObject(PushObjectRequest(**HEAD), PIECE).SerializeToString())
    assert frames[-1] is PIECE
    assert frames_of(PulledObject(True, True, PIECE))[-1] is PIECE


def test_httpx_knows_the_length_and_sends_the_parts() -> None:
    request = httpx.Request("POST", "http://x/", content=Frames([b"ab", b"", b"cde"]))
    assert request.headers["content-length"] == "5"
    assert "transfer-encoding" not in request.headers
    assert list(request.stream) == [b"ab", b"cde"]  # type: ignore[arg-type]
    assert request.read() == b"abcde"


def test_modules_of_flower_make_light_messages_of_what_is_large_only() -> None:
    class Module:
        PushObjectRequest = PushObjectRequest
        PullObjectResponse = PullObjectResponse

    large_objects.leave_pieces_beside(Module)  # type: ignore[arg-type]
    small, large = (
        Module.PushObjectRequest(object_content=b"x", **HEAD),
        Module.PushObjectRequest(object_content=PIECE, **HEAD),
    )
    assert small == PushObjectRequest(object_content=b"x", **HEAD)
    assert isinstance(large, PushedObject)
    assert (large.node.node_id, large.run_id, large.object_content) == (2**63 + 5, 7, PIECE)
    assert Module.PullObjectResponse(object_found=False, object_available=False) == PullObjectResponse()
    answer = Module.PullObjectResponse(object_found=True, object_available=True, object_content=PIECE)
    assert isinstance(answer, PulledObject)
