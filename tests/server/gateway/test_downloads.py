"""A site fetches the models of its open tasks, in parts of at most 64 MiB, and learns of no others."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from server.run_store.gateway_folder import OpenTask
from tests.server.gateway.lab import ABSENT, TASK, Lab, Reply, digest_of, wait_for

CONTENT = bytes(range(256)) * 5
WINDOW = 64 * 2**20


@pytest.fixture
def model(gateway: Lab) -> str:
    return f"/models/{gateway.open_task(model=CONTENT, offset=100).model}"


def test_a_model_is_its_bytes_within_a_larger_file(gateway: Lab, model: str) -> None:
    found = gateway.client().request("GET", model)
    assert (found.status, found.body) == (200, CONTENT)
    head = gateway.client().request("HEAD", model)
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("0-0", 0, 0), ("0-", 0, 1279), ("10-19", 10, 19), ("1279-1279", 1279, 1279), ("1000-999999", 1000, 1279)],
)
def test_a_range_is_honoured(gateway: Lab, model: str, wanted: str, first: int, last: int) -> None:
    found = gateway.client().request("GET", model, headers={"range": f"bytes={wanted}"})
    assert (found.status, found.body) == (206, CONTENT[first : last + 1])
    assert found.headers["content-range"] == f"bytes {first}-{last}/{len(CONTENT)}"


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("bytes=1280-", 416),
        ("bytes=5-4", 416),
        ("bytes=-5", 400),
        ("bytes=0-1,3-4", 400),
        ("bytes=a-b", 400),
        ("0-5", 400),
        (f"bytes={'9' * 30}-", 400),
        ("bytes=0x1-", 400),
    ],
)
def test_a_range_that_cannot_be_is_refused(gateway: Lab, model: str, wanted: str, status: int) -> None:
    found = gateway.client().request("GET", model, headers={"range": wanted})
    assert found.status == status
    if status == 416:
        assert found.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_at_most_64_mebibytes_come_at_once(gateway: Lab) -> None:
    size = WINDOW + 1000
    digest = "cd" * 32
    with (gateway.run / "large").open("wb") as file:
        file.truncate(size + 50)
    gateway.folder.open_task("north", OpenTask(TASK, digest, "large", 50, size, 0))
    before = gateway.memory()
    for wanted in (None, {"range": "bytes=0-"}, {"range": f"bytes=0-{size - 1}"}):
        found = gateway.client().request("GET", f"/models/{digest}", headers=wanted)
        assert (found.status, len(found.body)) == (206, WINDOW)
        assert found.headers["content-range"] == f"bytes 0-{WINDOW - 1}/{size}"
    rest = gateway.client().request("GET", f"/models/{digest}", headers={"range": f"bytes={WINDOW}-"})
    assert (rest.status, len(rest.body)) == (206, 1000)
    assert gateway.memory() - before < 16


def test_what_a_site_may_not_have_looks_like_what_does_not_exist(gateway: Lab, model: str) -> None:
    def seen(found: Reply) -> tuple[int, bytes, set[str]]:
        return found.status, found.body, set(found.headers)

    for method in ("GET", "HEAD"):
        unknown = gateway.client("south").request(method, f"/models/{ABSENT}")
        assert unknown.status == 404
        assert seen(gateway.client("south").request(method, model)) == seen(unknown)


def test_a_task_that_was_closed_gives_nothing(gateway: Lab, model: str) -> None:
    assert gateway.client().request("GET", model).status == 200
    gateway.folder.close_tasks()
    assert gateway.client().request("GET", model).status == 404


def test_a_file_that_is_missing_or_too_short_is_not_there(gateway: Lab) -> None:
    task = gateway.open_task(model=os.urandom(5000), offset=64)
    file = gateway.run / task.file
    client, path = gateway.client(), f"/models/{task.model}"
    assert client.request("GET", path).status == 200
    file.write_bytes(file.read_bytes()[:5000])
    assert client.request("GET", path).status == 404
    file.unlink()
    assert client.request("GET", path).status == 404


def test_a_body_where_none_belongs_is_refused(gateway: Lab, model: str) -> None:
    assert gateway.client().request("GET", model, b"body").status == 400


def test_a_client_that_does_not_take_its_answer_is_hung_up_on(strict: Lab) -> None:
    size = 24 * 2**20
    digest = digest_of(bytes(size))
    with (strict.run / "slow").open("wb") as file:
        file.truncate(size)
    strict.folder.open_task("east", OpenTask(TASK, digest, "slow", 0, size, 0))
    client, path = strict.client("east"), f"/models/{digest}"
    before = strict.sockets()
    slow = [client.socket() for _ in range(3)]
    try:
        for connection in slow:
            head = "".join(f"{name}: {value}\r\n" for name, value in client.signed("GET", path).items())
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode())
        wait_for(lambda: strict.sockets() == before + 3, "three connections")
        connection = client.connect()
        assert client.request("GET", path, connection=connection).body == bytes(size), "others are served meanwhile"
        connection.close()
        # Allowed are 2 s, and 1 s for each 4 MiB.
        wait_for(lambda: strict.sockets() == before, "connections that are shut", 20)
        for connection in slow:
            assert received_of(connection) < size
    finally:
        for connection in slow:
            connection.close()


def received_of(connection: socket.socket) -> int:
    count = 0
    with contextlib.suppress(OSError):
        while part := connection.recv(2**20):
            count += len(part)
    return count
