"""What a proxy leaves behind that was killed together with whoever watched over it."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.supervise import answers, free_port
from server.authority import Authority
from server.proxy import Listen, end_leftovers, find_nginx, write_proxy_configuration
from tests.e2e.network_federation import wait_for

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("nginx")]


def test_a_worker_that_outlived_the_proxy_is_ended_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority.create("tiny")
    issued = authority.issue(["127.0.0.1"], 1, datetime.now(UTC))
    for folder in ("left", "other"):
        (tmp_path / folder).mkdir()
        authority.save(tmp_path / folder)
        (tmp_path / folder / "server.crt").write_bytes(issued.certificate)
        (tmp_path / folder / "server.key").write_bytes(issued.key)
    ports = {folder: free_port() for folder in ("left", "other")}
    masters = {}
    for folder, port in ports.items():
        file = write_proxy_configuration(
            tmp_path / folder, tmp_path / folder, Listen("127.0.0.1", port), f"127.0.0.1:{free_port()}"
        )
        masters[folder] = subprocess.Popen([find_nginx(), "-c", str(file)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: all(map(answers, ports.values())), 20, "two proxies")
        masters["left"].kill()
        masters["left"].wait()
        assert answers(ports["left"]), "its worker lives on"
        end_leftovers(tmp_path / "left")
        assert not answers(ports["left"])
        assert answers(ports["other"])
    finally:
        for folder, master in masters.items():
            master.terminate()
            master.wait()
            end_leftovers(tmp_path / folder)
