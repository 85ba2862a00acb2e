"""The conformance statement says what the program does."""

import re
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import ALL_TRANSFER_SYNTAXES

from client.node.config import NodeLimits
from client.pacs import receiver
from common.imaging.io.dicom.pixel_form import IMAGE_KINDS, SYNTAXES

PAGE = Path(__file__).resolve().parents[3] / "deploy/docs/conformance.md"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table with such a head."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(heading) + 2
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def test_lists_the_sop_classes_that_are_stored() -> None:
    found = rows("| SOP class | UID |")
    assert [uid for _, uid in found] == list(IMAGE_KINDS)
    assert all(UID(uid).name == name for name, uid in found)


def test_lists_the_transfer_syntaxes_that_are_accepted() -> None:
    found = rows("| transfer syntax | UID | read |")
    assert [uid for _, uid, _ in found] == ALL_TRANSFER_SYNTAXES
    assert all(UID(uid).name == name for name, uid, _ in found)
    assert {uid for _, uid, read in found if read == "yes"} == set(SYNTAXES)


def test_lists_the_answers() -> None:
    answers = [getattr(receiver, name) for name in ("SUCCESS", "OTHER_KIND", "FAILED", "OUT_OF_RESOURCES")]
    answers += [receiver.MISMATCH, receiver.NOT_UNDERSTOOD]
    found = rows("| status | meaning | what a sender should do |")
    assert [int(status, 16) for status, _, _ in found] == answers


def test_limits_are_those_of_the_defaults() -> None:
    text, limits = PAGE.read_text(encoding="utf-8"), NodeLimits()
    assert re.search(r"(\d+) at the same time \(`limits.associations`\)", text)[1] == str(limits.associations)
    assert re.search(r"(\d+) bytes \(`limits.pdu_bytes`\)", text)[1] == str(limits.pdu_bytes)
    assert re.search(r"(\d+) MB \(`limits.instance_megabytes`\)", text)[1] == str(limits.instance_megabytes)
