"""Which pages are served, and what is said of those that cannot be."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from client.cli import main
from client.web.place import Place
from client.web.serving import LOCK_FILE, PageOpenError, page_beside, page_of
from common.config.kit import KIT_FILE, Kit, read_kit
from common.errors import OutputError
from common.web.listening import Listening
from tests import kits
from tests.e2e.commands import call

LOOPBACK = Listening("127.0.0.1", 0)


def refused(*arguments: object) -> str:
    done = call(main, "page", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 2
    return done.stderr


def test_a_page_is_there_until_it_ends_and_another_one_names_it(place: Place) -> None:
    said: list[str] = []
    with page_of(place, LOOPBACK, said.append):
        address = said[0].rpartition(" ")[2].partition("/sign-in")[0]
        assert httpx.get(f"{address}/sign-in").status_code == 200
        with pytest.raises(PageOpenError, match="page is open already"), page_of(place, LOOPBACK, said.append):
            pass
        assert httpx.get(f"{address}/sign-in").status_code == 200
    with page_of(place, LOOPBACK, said.append):
        pass


def test_kits_that_are_none_of_a_site_are_refused_and_get_no_state(tmp_path: Path, place: Place) -> None:
    other = tmp_path / "server"
    other.mkdir()
    about = read_kit(place.kit)
    content = Kit(role="server", federation=about.federation, digest=about.digest, address="x.example", port=1)
    (other / KIT_FILE).write_text(content.sealed().model_dump_json(), encoding="utf-8")
    assert "is a server kit; use it with fedvox-server start" in refused("--kit", other)
    assert not (other / "state").exists()
    assert "is not a kit" in refused("--kit", tmp_path / "nothing")
    kits.change_kit(place.kit, port=1)
    file = place.kit / KIT_FILE
    file.write_text(file.read_text(encoding="utf-8").replace('"port":1', '"port":2'), encoding="utf-8")
    assert "was changed" in refused("--kit", place.kit)
    assert not (place.kit / "state").exists()


def test_a_port_that_is_taken_is_named_and_leaves_nothing(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OutputError, match=f"127.0.0.1:{port}: another program listens there already"),
            page_of(place, Listening("127.0.0.1", port), print),
        ):
            pass
    assert not (place.state / LOCK_FILE).exists()


def test_a_site_runs_without_its_page_and_says_why(place: Place) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with page_beside(place, Listening("127.0.0.1", port), said.append):
            said.append("the site runs")
    assert said == [
        f"no page: 127.0.0.1:{port}: another program listens there already; choose another port",
        "the site runs",
    ]


def test_other_machines_need_tls(place: Place) -> None:
    said = refused("--kit", place.kit, "--state", place.state, "--listen", "0.0.0.0:8761")
    assert "others could read along" in said
