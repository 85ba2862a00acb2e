"""Models down and updates up, over a line that breaks, to a server that makes mistakes, from a disk that is full."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.consent.site_config import SiteNetwork
from client.courier.connection import Access, client_context
from client.courier.errors import GivenUpError, RefusedError, StoppedError
from client.courier.proxy import Address
from client.courier.retry import Retries
from client.courier.transfers.pace import WINDOW_BYTES, Pace
from client.courier.transfers.transfers import Transfers
from client.courier.transfers.upload import verified
from common.certificates import site_identity
from tests.client.courier.kits import Kits
from tests.client.courier.stand_in import Attempt, StandIn, stand_in, wait_for

TASK = "0123456789abcdef" * 2
CONTENT = random.Random(1).randbytes(1_500_000)


@pytest.fixture
def gateway(kits: Kits) -> Iterator[StandIn]:
    with stand_in(kits) as gateway:
        yield gateway


class Site:
    """What carries files for a site."""

    def __init__(
        self,
        gateway: StandIn,
        folder: Path,
        network: SiteNetwork | None = None,
        patience: float = 600,
        window: int = WINDOW_BYTES,
    ) -> None:
        kit = gateway.kits.site(folder / "kit", gateway.port)
        gateway.let_in(kit)
        self.contacts = 0
        self.stop = threading.Event()
        access = Access(
            "north",
            site_identity(kit, "north").key,
            client_context(kit),
            Address("127.0.0.1", gateway.port),
            kit / "ca.crt",
            self.note,
        )
        self.transfers = Transfers(
            access, Pace(network or SiteNetwork(), self.stop, window=window), Retries(self.stop, patience)
        )

    def note(self) -> None:
        self.contacts += 1

    def upload(self, file: Path) -> None:
        with verified(file, file.name) as opened:
            self.transfers.upload(TASK, file.name, opened)


@pytest.fixture
def site(gateway: StandIn, tmp_path: Path) -> Iterator[Site]:
    site = Site(gateway, tmp_path / "site")
    yield site
    site.stop.set()


def update_in(folder: Path, content: bytes = CONTENT) -> Path:
    file = folder / hashlib.sha256(content).hexdigest()
    file.write_bytes(content)
    return file


def ranges(gateway: StandIn) -> list[str]:
    return [request.headers["range"] for request in gateway.asked("GET", "/models/.*")]


def test_a_model_comes_whole(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [digest]
    assert site.contacts == 1


def test_large_files_come_in_windows(gateway: StandIn, tmp_path: Path) -> None:
    site = Site(gateway, tmp_path / "site", window=600_000)
    digest = gateway.publish(CONTENT)
    site.transfers.download(digest, tmp_path / digest)
    assert ranges(gateway) == ["bytes=0-599999", "bytes=600000-1199999", "bytes=1200000-1799999"]
    assert (tmp_path / digest).read_bytes() == CONTENT


def test_a_download_goes_on_where_it_broke_off(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    gateway.add("GET", "/models/.*", times=2, cut=500_000)
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    firsts = [int(text.removeprefix("bytes=").split("-")[0]) for text in ranges(gateway)]
    assert firsts[0] == 0 < firsts[1] < firsts[2]
    assert firsts[1] >= 400_000


def test_the_next_process_goes_on_where_the_last_was_killed(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    (tmp_path / f".{digest}.part").write_bytes(CONTENT[:1_000_000])
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert ranges(gateway)[0].startswith("bytes=1000000-")


def test_a_part_that_is_whole_needs_no_request(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    (tmp_path / f".{digest}.part").write_bytes(CONTENT)
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert not gateway.requests


@pytest.mark.parametrize("rest", [b"another model", CONTENT + b"more"], ids=["damaged", "too long"])
def test_a_part_of_something_else_is_fetched_anew(gateway: StandIn, site: Site, tmp_path: Path, rest: bytes) -> None:
    digest = gateway.publish(CONTENT)
    (tmp_path / f".{digest}.part").write_bytes(rest)
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert ranges(gateway)[-1].startswith("bytes=0-")


def test_what_comes_damaged_is_fetched_anew(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    gateway.add("GET", "/models/.*", damage=True)
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert len(ranges(gateway)) == 2


def test_what_always_comes_damaged_is_given_up(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    gateway.models[digest] = CONTENT[::-1]
    with pytest.raises(GivenUpError, match="damaged 3 times"):
        site.transfers.download(digest, tmp_path / digest)
    assert len(ranges(gateway)) == 3
    assert not [file for file in tmp_path.iterdir() if file.is_file()]


def test_a_model_that_is_not_given_is_not_asked_for_again(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="404"):
        site.transfers.download("0" * 64, tmp_path / ("0" * 64))
    assert len(gateway.requests) == 1


def test_a_refusal_that_may_pass_is_borne_for_a_while(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    digest = gateway.publish(CONTENT)
    gateway.add("GET", "/models/.*", times=2, status=429, word="quota")
    gateway.add("GET", "/models/.*", times=1, status=503)
    site.transfers.download(digest, tmp_path / digest)
    assert [request.status for request in gateway.requests] == [429, 429, 503, 206]
    impatient = Site(gateway, tmp_path / "impatient", patience=0.3)
    gateway.add("GET", "/models/.*", times=99, status=401, word="clock")
    with pytest.raises(RefusedError, match="synchronise this machine's clock"):
        impatient.transfers.download(digest, tmp_path / "again")


def test_a_server_that_lies_about_ranges_is_not_believed(
    gateway: StandIn, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = gateway.publish(CONTENT)
    gateway.add("GET", "/models/.*", status=206, headers={"content-range": "bytes 5-9/10"}, word="12345")
    gateway.add("GET", "/models/.*", status=206, word="12345")
    site.transfers.download(digest, tmp_path / digest)
    assert (tmp_path / digest).read_bytes() == CONTENT
    assert "a different range than requested" in caplog.text


def test_a_full_disk_is_waited_out(
    gateway: StandIn, site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m none {inbox} 2>/dev/null") != 0:  # noqa: S605
        pytest.skip("needs the right to mount")
    try:
        digest = gateway.publish(CONTENT)
        attempt = Attempt(site.transfers.download, digest, inbox / digest)
        wait_for(lambda: "No space left" in caplog.text, "the complaint")
        assert str(inbox) in caplog.text
        assert "free space" in caplog.text
        assert os.system(f"mount -o remount,size=4m {inbox}") == 0  # noqa: S605
        attempt.end()
        assert (inbox / digest).read_bytes() == CONTENT
    finally:
        os.system(f"umount -l {inbox}")  # noqa: S605


def test_an_update_goes_whole(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    file = update_in(tmp_path)
    site.upload(file)
    assert gateway.updates == {file.name: CONTENT}
    assert [(request.method, request.status) for request in gateway.requests] == [("HEAD", 200), ("PATCH", 201)]


def test_an_update_goes_in_windows(gateway: StandIn, tmp_path: Path) -> None:
    site = Site(gateway, tmp_path / "site", window=1_000_000)
    gateway.update_bytes[TASK] = len(CONTENT)
    site.upload(update_in(tmp_path))
    offsets = [request.headers["upload-offset"] for request in gateway.asked("PATCH", ".*")]
    assert offsets == ["0", "1000000"]
    assert list(gateway.updates.values()) == [CONTENT]


def test_an_upload_goes_on_where_it_broke_off(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    gateway.add("PATCH", "/updates/.*", times=2, cut=500_000)
    file = update_in(tmp_path)
    site.upload(file)
    assert gateway.updates == {file.name: CONTENT}
    [last] = gateway.asked("PATCH", "/updates/.*")
    assert int(last.headers["upload-offset"]) >= 1_000_000


def test_an_update_that_is_there_already_is_not_sent(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    file = update_in(tmp_path)
    assert not site.transfers.is_there(TASK, file.name)
    gateway.updates[file.name] = CONTENT
    site.upload(file)
    assert not gateway.asked("PATCH", ".*")
    assert site.transfers.is_there(TASK, file.name)


def test_the_server_knows_best_where_to_go_on(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    file = update_in(tmp_path)
    gateway.parts[TASK, file.name] = bytearray(CONTENT[:700_000])
    gateway.add("HEAD", "/updates/.*", status=200, headers={"upload-offset": "300000"})
    site.upload(file)
    assert [request.status for request in gateway.asked("PATCH", ".*")] == [409, 201]
    assert gateway.updates == {file.name: CONTENT}


@pytest.mark.parametrize("status", [404, 413, 422])
def test_a_refused_update_is_given_up(gateway: StandIn, site: Site, tmp_path: Path, status: int) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    gateway.add("PATCH", "/updates/.*", times=99, status=status)
    with pytest.raises(RefusedError, match=str(status)):
        site.upload(update_in(tmp_path))
    # What arrived damaged is sent once more.
    assert len(gateway.asked("PATCH", ".*")) == (2 if status == 422 else 1)


def test_wrong_offsets_do_not_go_on_for_ever(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    gateway.add("PATCH", "/updates/.*", times=99, status=409, headers={"upload-offset": "5"})
    with pytest.raises(RefusedError, match="409"):
        site.upload(update_in(tmp_path))
    assert len(gateway.asked("PATCH", ".*")) <= 6


def test_an_update_of_another_size_than_planned_is_refused(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = 5
    with pytest.raises(RefusedError, match="413"):
        site.upload(update_in(tmp_path))


def test_nothing_leaves_of_a_file_that_is_not_what_its_name_says(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.update_bytes[TASK] = len(CONTENT)
    file = update_in(tmp_path)
    with file.open("r+b") as opened:
        opened.seek(1_234_567)
        opened.write(b"\0\1\2\3")
    for broken in (file, tmp_path / ("0" * 64)):
        with pytest.raises(GivenUpError, match=broken.name):
            site.upload(broken)
    link = tmp_path / ("1" * 64)
    link.symlink_to(file)
    with pytest.raises(GivenUpError, match="cannot be opened"):
        site.upload(link)
    assert not gateway.requests


@pytest.mark.parametrize("change", ["written", "renamed", "removed"])
def test_an_update_that_changes_on_its_way_is_not_sent_on(
    gateway: StandIn, site: Site, tmp_path: Path, change: str
) -> None:
    content = CONTENT * 8
    gateway.update_bytes[TASK] = len(content)
    file = update_in(tmp_path, content)
    held = gateway.add("PATCH", "/updates/.*", hold=threading.Event())
    attempt = Attempt(site.upload, file)
    wait_for(lambda: held.seen, "the upload")
    time.sleep(0.05)
    if change == "written":
        with file.open("r+b") as opened:
            opened.write(b"another update")
    elif change == "renamed":
        file.rename(tmp_path / ".spare")
    else:
        file.unlink()
    assert held.hold is not None
    held.hold.set()
    attempt.end()
    assert isinstance(attempt.error, GivenUpError)
    assert not gateway.updates


def test_a_stop_ends_a_transfer_that_waits(gateway: StandIn, site: Site, tmp_path: Path) -> None:
    gateway.add("GET", "/models/.*", times=999, status=503)
    attempt = Attempt(site.transfers.download, "0" * 64, tmp_path / ("0" * 64))
    wait_for(lambda: len(gateway.requests) > 2, "some attempts")
    site.stop.set()
    attempt.end(2)
    assert isinstance(attempt.error, StoppedError)


def test_the_rate_is_kept(gateway: StandIn, tmp_path: Path) -> None:
    site = Site(gateway, tmp_path / "site", SiteNetwork(max_megabits=10))
    digest = gateway.publish(CONTENT[:1_000_000])
    began = time.monotonic()
    site.transfers.download(digest, tmp_path / digest)
    assert 0.7 < time.monotonic() - began < 3


def test_large_files_wait_for_their_hours_and_small_ones_do_not(
    gateway: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hour = time.localtime().tm_hour
    later = f"{(hour + 3) % 24:02}:00", f"{(hour + 4) % 24:02}:00"
    site = Site(gateway, tmp_path / "site", SiteNetwork(large_files_between=later))
    small, large = gateway.publish(CONTENT[: 2**20]), gateway.publish(CONTENT)
    site.transfers.download(small, tmp_path / small)
    attempt = Attempt(site.transfers.download, large, tmp_path / large)
    wait_for(lambda: f"waits until {later[0]}" in caplog.text, "the wait")
    assert not gateway.asked("GET", f"/models/{large}")
    site.stop.set()
    attempt.end(2)
    assert isinstance(attempt.error, StoppedError)
