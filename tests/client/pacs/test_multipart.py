"""Answers in several parts, however they are cut into pieces."""

from __future__ import annotations

import re

import pytest

from client.pacs.archives.multipart import MultipartError, boundary_of, read_parts

PARTS = [b"", b"--x", b"one\r\n-", b"\r\n\r\n--xx\r\n"]
BODY = b"preface\r\n--xxx\r\n\r\n" + b"\r\n--xxx\r\nContent-Type: application/dicom\r\nA: b\r\n\r\n".join(PARTS)


def parts_of(body: bytes, size: int, most_bytes: int = 100) -> list[bytes]:
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return [b"".join(part) for part in read_parts(pieces, b"xxx", most_bytes)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nepilogue\r\n--xxx\r\n\r\nno part"])
def test_parts_are_the_same_in_pieces_of_any_size(size: int, end: bytes) -> None:
    assert parts_of(BODY + b"\r\n--xxx--" + end, size) == PARTS
    assert parts_of(b"--xxx--" + end, size) == []
    assert parts_of(b"--xxx\r\n\r\nonly\r\n--xxx--" + end, size) == [b"only"]


@pytest.mark.parametrize("body", [b"", b"no part", BODY, BODY + b"\r\n--xxx", BODY + b"\r\n--xxx\r\nContent-Type: a"])
def test_an_answer_that_is_cut_off_is_refused(body: bytes) -> None:
    with pytest.raises(MultipartError, match="ends within"):
        parts_of(body, 10)


@pytest.mark.parametrize("body", [b"a" * 70_000, b"--xxx\r\nA: " + b"a" * 70_000, b"--xxx\r\n\r\n" + b"a" * 200])
def test_neither_a_part_nor_its_headers_go_on_for_ever(body: bytes) -> None:
    with pytest.raises(MultipartError, match="more than"):
        parts_of(body, 50)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/related; boundary=abc", b"abc"),
        ('Multipart/Related;type="application/dicom; transfer-syntax=*";Boundary="a b;c"', b"a b;c"),
        ('multipart/related; boundary="abc"; type="application/dicom"', b"abc"),
        ("multipart/related; type=x", None),
        ("multipart/mixed; boundary=abc", None),
        ("multipart/related; boundary=" + "a" * 71, None),
        ("multipart/related; boundary=", None),
        ("multipart/related; boundary=\xfc", None),
        ("application/dicom", None),
        ("", None),
    ],
)
def test_what_divides_the_parts_is_in_the_content_type(content_type: str, boundary: bytes | None) -> None:
    if boundary is None:
        with pytest.raises(MultipartError, match=re.escape("multipart/related")):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary
