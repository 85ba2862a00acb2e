"""A site sends its own updates, in parts, resumed after any break, and nothing else than what it was asked for."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import threading
import time
from pathlib import Path

import pytest

from common.weights.store import FileStore
from tests.server.gateway.lab import ABSENT, TASK, Lab, Reply, SiteClient, digest_of, lab, wait_for

SIZE = 300_000
OTHER_TASK = "fe" * 16


@pytest.fixture
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def north(gateway: Lab) -> SiteClient:
    for site in ("north", "south"):
        gateway.open_task(site, update_bytes=SIZE)
        FileStore(gateway.folder.updates(site)).keep(())
    return gateway.client("north")


def begin(client: SiteClient, digest: str, offset: int, body: int, length: int = SIZE) -> Sending:
    return Sending(client, digest, offset, body, length)


class Sending:
    """A PATCH whose head is sent, and whose body comes as the test likes."""

    def __init__(self, client: SiteClient, digest: str, offset: int, size: int, length: int) -> None:
        path = f"/updates/{TASK}/{digest}"
        headers = {"upload-offset": str(offset), "upload-length": str(length)}
        self.connection = client.connect()
        self.connection.putrequest("PATCH", path, skip_accept_encoding=True)
        for name, value in client.signed("PATCH", path, digest, headers).items():
            self.connection.putheader(name, value)
        self.connection.putheader("content-length", str(size))
        self.connection.endheaders()

    def send(self, body: bytes) -> None:
        self.connection.send(body)

    def answer(self) -> Reply:
        response = self.connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())

    def hang_up(self) -> None:
        self.connection.close()


def test_an_update_comes_in_parts(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    assert north.offset(digest) == (0, False)
    part = north.upload(digest, content[:100_000], 0, SIZE)
    assert (part.status, part.headers["upload-offset"]) == (202, "100000")
    assert north.offset(digest) == (100_000, False)
    whole = north.upload(digest, content[100_000:], 100_000)
    assert (whole.status, whole.headers["upload-complete"]) == (201, "?1")
    assert north.offset(digest) == (SIZE, True)
    assert (gateway.folder.updates("north") / digest).read_bytes() == content
    assert not gateway.part("north", digest).exists()


def test_an_update_that_is_there_is_not_taken_again(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    assert north.upload(digest, content).status == 201
    before = (gateway.folder.updates("north") / digest).stat()
    again = north.upload(digest, bytes(SIZE))
    assert (again.status, again.headers["upload-complete"]) == (201, "?1")
    assert (gateway.folder.updates("north") / digest).stat() == before


@pytest.mark.parametrize("offset", [0, 99_999, 100_001, 299_000])
def test_a_wrong_offset_is_told_the_true_one(north: SiteClient, content: bytes, offset: int) -> None:
    digest = digest_of(content)
    north.upload(digest, content[:100_000], 0, SIZE)
    found = north.upload(digest, content[:1000], offset, SIZE)
    assert (found.status, found.headers["upload-offset"]) == (409, "100000")
    assert north.offset(digest) == (100_000, False)


@pytest.mark.parametrize(
    ("offset", "body", "length"),
    [
        (0, 1000, SIZE + 1),
        (0, 1000, SIZE - 1),
        (0, 1000, 10**17),
        (0, SIZE + 1, SIZE),
        (SIZE - 10, 11, SIZE),
        (SIZE + 5, 5, SIZE),
    ],
)
def test_more_than_the_plan_says_is_refused(
    gateway: Lab, north: SiteClient, content: bytes, offset: int, body: int, length: int
) -> None:
    digest = digest_of(content)
    assert north.upload(digest, bytes(body), offset, length).status == 413
    assert not gateway.part("north", digest).exists()


def test_more_than_64_mebibytes_at_once_are_refused(gateway: Lab, north: SiteClient) -> None:
    size = 65 * 2**20
    gateway.open_task(update_bytes=size)
    sending = begin(north, ABSENT, 0, 64 * 2**20 + 1, size)
    assert sending.answer().status == 413
    sending.hang_up()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"upload-offset": "0"}, 400),
        ({"upload-length": str(SIZE)}, 400),
        ({"upload-offset": "-1", "upload-length": str(SIZE)}, 400),
        ({"upload-offset": "1e3", "upload-length": str(SIZE)}, 400),
        ({"upload-offset": "9" * 40, "upload-length": str(SIZE)}, 400),
    ],
)
def test_numbers_that_are_none_are_refused(north: SiteClient, headers: dict[str, str], status: int) -> None:
    assert north.request("PATCH", f"/updates/{TASK}/{ABSENT}", b"x", headers, ABSENT).status == status


def test_a_content_that_does_not_fit_its_name_is_thrown_away(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    wrong = bytes([content[0] ^ 1]) + content[1:]
    found = north.upload(digest, wrong)
    assert (found.status, found.word) == (422, "content")
    assert north.offset(digest) == (0, False)
    assert [file.name for file in gateway.folder.updates("north").iterdir()] == []
    assert north.upload(digest, content).status == 201


def test_the_name_in_the_path_must_be_what_was_signed(north: SiteClient, content: bytes) -> None:
    headers = {"upload-offset": "0", "upload-length": str(SIZE)}
    digest = digest_of(content)
    found = north.request("PATCH", f"/updates/{TASK}/{digest}", content, headers, ABSENT)
    assert (found.status, found.word) == (401, "signature")
    assert north.offset(digest) == (0, False)


def test_the_offset_is_signed(gateway: Lab, north: SiteClient, content: bytes) -> None:
    path = f"/updates/{TASK}/{digest_of(content)}"
    signed = north.signed("PATCH", path, digest_of(content), {"upload-offset": "10", "upload-length": str(SIZE)})
    connection = north.connect()
    connection.request("PATCH", path, content, signed | {"upload-offset": "0"})
    response = connection.getresponse()
    assert (response.status, response.read()) == (401, b"signature")


def test_another_sites_task_and_update_are_as_if_they_were_not(gateway: Lab, north: SiteClient, content: bytes) -> None:
    south, digest = gateway.client("south"), digest_of(content)
    gateway.open_task("north", OTHER_TASK, update_bytes=SIZE)
    assert north.upload(digest, content).status == 201
    assert north.upload(digest, content, task=OTHER_TASK).status == 201, "one file for all tasks that name it"
    assert south.offset(digest) == (0, False), "its own task, the other's update"
    for method, name in (("HEAD", OTHER_TASK), ("HEAD", "00" * 16)):
        assert south.request(method, f"/updates/{name}/{digest}").status == 404
    assert south.upload(digest, content, task=OTHER_TASK).status == 404
    assert list(gateway.folder.updates("south").glob("*")) == []


def test_a_task_that_wants_no_update_takes_none(gateway: Lab, north: SiteClient, content: bytes) -> None:
    gateway.open_task("north", OTHER_TASK, update_bytes=0)
    for size in (content, b""):
        assert north.upload(digest_of(size), size, task=OTHER_TASK).status == 404


def test_a_line_that_breaks_loses_nothing(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    sending = begin(north, digest, 0, SIZE)
    sending.send(content[:123_456])
    wait_for(lambda: gateway.part("north", digest).exists(), "a part")
    time.sleep(0.1)
    sending.hang_up()
    offset = wait_for(lambda: north.offset(digest)[0], "what came")
    assert 0 < offset <= 123_456
    assert north.upload(digest, content[offset:], offset).status == 201


def test_the_later_of_two_requests_for_one_update_has_it(gateway: Lab, north: SiteClient, content: bytes) -> None:
    """The earlier one may be the rest of a line that broke without anybody hearing of it."""
    digest = digest_of(content)
    first = begin(north, digest, 0, SIZE)
    first.send(content[:50_000])
    wait_for(lambda: gateway.part("north", digest).exists(), "a part")
    offset, is_whole = north.offset(digest)
    assert not is_whole
    found = first.answer()
    assert (found.status, found.word) == (409, "superseded")
    second = begin(north, digest, offset, SIZE - offset)
    third = begin(north, digest, offset, SIZE - offset)
    for sending in (second, third):
        with contextlib.suppress(OSError):
            sending.send(content[offset:])
    assert second.answer().status == 409
    # Of the second's bytes some may have come before it was ended, and then the third's offset is wrong.
    third.answer()
    offset, is_whole = north.offset(digest)
    assert is_whole or north.upload(digest, content[offset:], offset).status == 201
    assert (gateway.folder.updates("north") / digest).read_bytes() == content


def test_many_at_once_for_one_update_leave_it_whole(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)

    def insist() -> None:
        client = gateway.client("north")
        for _ in range(200):
            offset, is_whole = client.offset(digest)
            if is_whole:
                return
            with contextlib.suppress(OSError, http.client.HTTPException):
                client.upload(digest, content[offset : offset + 30_000], offset, SIZE)

    threads = [threading.Thread(target=insist) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert north.offset(digest) == (SIZE, True)
    assert (gateway.folder.updates("north") / digest).read_bytes() == content


def test_a_site_sends_two_updates_at_once_and_no_third(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digests = [digest_of(bytes([number])) for number in range(3)]
    sendings = [begin(north, digest, 0, SIZE) for digest in digests[:2]]
    for sending, digest in zip(sendings, digests, strict=False):
        sending.send(content[:1000])
        wait_for(lambda digest=digest: gateway.part("north", digest).exists(), "a part")  # type: ignore[misc]
    found = north.upload(digests[2], content, 0)
    assert (found.status, found.word) == (429, "uploads")
    assert gateway.client("south").upload(digest_of(content), content).status == 201
    for sending in sendings:
        sending.hang_up()


def test_old_parts_make_room_and_whole_updates_do_not(gateway: Lab, north: SiteClient) -> None:
    contents = [os.urandom(SIZE) for _ in range(7)]
    for content in contents[:5]:
        assert north.upload(digest_of(content), content[:1000], 0, SIZE).status == 202
        time.sleep(0.02)
    folder = gateway.folder.updates("north")
    left = {file.name for file in folder.iterdir()}
    assert left == {f".{digest_of(content)}.part" for content in contents[1:5]}, "four at most, the oldest went"
    FileStore(folder).keep(())
    for content in contents[:4]:
        assert north.upload(digest_of(content), content).status == 201
    found = north.upload(digest_of(contents[4]), contents[4])
    assert (found.status, found.word) == (429, "updates")
    assert len(list(folder.glob("*"))) == 4


def test_what_the_server_drops_is_not_written_any_more(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    sending = begin(north, digest, 0, SIZE)
    sending.send(content[:1000])
    wait_for(lambda: gateway.part("north", digest).exists(), "a part")
    FileStore(gateway.folder.updates("north")).keep(())
    sending.send(content[1000:])
    found = sending.answer()
    assert (found.status, found.headers["upload-offset"]) == (409, "0"), "all of it is to be sent again"
    assert not (gateway.folder.updates("north") / digest).exists()
    assert north.upload(digest, content).status == 201


def test_a_task_that_is_closed_takes_no_more(gateway: Lab, north: SiteClient, content: bytes) -> None:
    digest = digest_of(content)
    assert north.upload(digest, content[:1000], 0, SIZE).status == 202
    gateway.folder.close_tasks()
    found = north.upload(digest, content[1000:], 1000)
    assert (found.status, found.word) == (404, "task")
    assert north.request("HEAD", f"/updates/{TASK}/{digest}").status == 404


def test_a_body_that_stops_is_ended(strict: Lab, content: bytes) -> None:
    strict.open_task("north", update_bytes=SIZE)
    north, digest = strict.client(), digest_of(content)
    sending = begin(north, digest, 0, SIZE)
    sending.send(content[:70_000])
    began = time.monotonic()
    found = sending.answer()
    assert (found.status, found.word, found.headers["connection"]) == (408, "slow", "close")
    assert 0.5 < time.monotonic() - began < 5
    assert north.offset(digest) == (70_000, False)
    assert north.upload(digest, content[70_000:], 70_000).status == 201
    wait_for(lambda: strict.refused("north", "slow"), "what was refused")


def test_a_body_that_trickles_is_ended(strict: Lab, content: bytes) -> None:
    strict.open_task("north", update_bytes=SIZE)
    sending = begin(strict.client(), ABSENT, 0, SIZE)
    began, before = time.monotonic(), strict.refused("north", "slow")
    with pytest.raises(OSError):
        while time.monotonic() - began < 60:  # ended after two seconds, unless the machine is busy
            sending.send(b"x")
            time.sleep(0.1)
    assert time.monotonic() - began > 1.5
    wait_for(lambda: strict.refused("north", "slow") > before, "what was refused")


def test_revoking_ends_a_body_under_way(strict: Lab, content: bytes) -> None:
    strict.let_in("west")
    strict.open_task("west", update_bytes=SIZE)
    sending = begin(strict.client("west"), digest_of(content), 0, SIZE)
    sending.send(content[:1000])
    wait_for(lambda: strict.part("west", digest_of(content)).exists(), "a part")
    began = time.monotonic()
    strict.revoke("west")
    with pytest.raises(OSError):
        while time.monotonic() - began < 60:
            sending.send(b"x" * 100)
            time.sleep(0.05)
    assert not (strict.folder.updates("west") / digest_of(content)).exists()


def test_a_gateway_that_is_killed_goes_on_where_it_was(tmp_path: Path, content: bytes) -> None:
    with lab(tmp_path) as gateway:
        gateway.open_task(update_bytes=SIZE)
        north, digest = gateway.client(), digest_of(content)
        assert north.upload(digest, content[:100_000], 0, SIZE).status == 202
        sending = begin(north, digest, 100_000, SIZE - 100_000)
        sending.send(content[100_000:150_000])
        gateway.kill()
        gateway.start()
        offset, is_whole = north.offset(digest)
        assert 100_000 <= offset <= 150_000 and not is_whole
        assert north.upload(digest, content[offset:], offset).status == 201
        assert (gateway.folder.updates("north") / digest).read_bytes() == content
        # A part that was changed meanwhile is found out, and thrown away.
        other = os.urandom(SIZE)
        assert north.upload(digest_of(other), other[:100_000], 0, SIZE).status == 202
        gateway.kill()
        part = gateway.part("north", digest_of(other))
        received = part.read_bytes()
        part.write_bytes(bytes([received[0] ^ 1]) + received[1:])
        gateway.start()
        assert north.upload(digest_of(other), other[100_000:], 100_000).status == 422
        assert north.upload(digest_of(other), other).status == 201


def test_a_full_disk_keeps_what_came(tmp_path: Path) -> None:
    content, most = os.urandom(3 * 2**20), 2**20

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    gateway = Lab(tmp_path)
    gateway.open_task(update_bytes=len(content))
    north, digest = gateway.client(), digest_of(content)
    gateway.start(preexec_fn=limit_files)
    try:
        found = north.upload(digest, content)
        assert (found.status, found.word) == (507, "disk-full")
        assert north.offset(digest) == (most, False)
        assert north.upload(digest, content[most:], most).status == 507
        assert north.request("POST", "/heartbeat", b"{}").status == 400, "it still serves"
        gateway.kill()
        gateway.start()
        assert north.upload(digest, content[most:], most).status == 201
        assert (gateway.folder.updates("north") / digest).read_bytes() == content
    finally:
        gateway.kill()


def test_memory_does_not_grow_with_the_file(gateway: Lab, north: SiteClient) -> None:
    block, blocks = os.urandom(2**20), 192
    content = block * blocks
    digest, window = digest_of(content), 64 * 2**20
    gateway.open_task(update_bytes=len(content))
    before = gateway.memory()
    most = 0.0
    for offset in range(0, len(content), window):
        sending = begin(north, digest, offset, window, len(content))
        for _ in range(window // len(block)):
            sending.send(block)
            most = max(most, gateway.memory())
        assert sending.answer().status in (201, 202)
        sending.hang_up()
    assert north.offset(digest)[1]
    assert most - before < 24
    assert most < 120
