"""``fedvox-server page``: what it refuses, in words, and that it serves."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from common.system.supervisor import free_port
from server.cli import main
from server.cli.page import add_page_option, page_beside
from tests.server.run_folder import write_run_folder

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_folder(tmp_path_factory.mktemp("page") / "run", 2)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["{run}", "--listen", "0.0.0.0:9000"], 2, "others could read along; give --tls-cert and --tls-key"),
        (["{run}", "--listen", "somewhere"], 2, "--listen somewhere"),
        (["{run}", "--listen", "127.0.0.1:9000", "--tls-cert", "a.pem"], 2, "give both or none"),
        (["{run}/checkpoints"], 1, "not the folder of a run"),
        (["{run}/nowhere"], 1, "does not exist"),
        (["{run}", "--listen", "127.0.0.1:{taken}"], 1, "another program listens there already; choose another port"),
    ],
)
def test_what_cannot_be_served_is_refused_in_words(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    (run / "checkpoints").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = [option.format(run=run, taken=other.getsockname()[1]) for option in options]
        assert main(["page", *given]) == status
    assert said in capsys.readouterr().err


def test_a_page_stands_beside_a_run_that_begins_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_page_option(parser)
    run = tmp_path / "run"
    with page_beside(parser.parse_args(["--page", f"127.0.0.1:{free_port()}"]), run):
        link = capsys.readouterr().out.splitlines()[0].split()[-1]
        address = link.partition("/sign-in")[0]
        with httpx.Client(headers={"Origin": address}, follow_redirects=True) as client:
            shown = client.post(f"{address}/sign-in", data={"token": link.rpartition("=")[2]})
            assert shown.status_code == 503
            assert "does not exist" in shown.text
            write_run_folder(run, 2)
            assert client.get(f"{address}/runs/0").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    with page_beside(parser.parse_args([]), run):
        assert not capsys.readouterr().out


def test_a_page_is_served_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "server.cli", "page", str(run), "--listen", f"127.0.0.1:{free_port()}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=run, env=environment) as page:
        assert page.stdout is not None
        try:
            lines = [page.stdout.readline() for _ in range(3)]
            link = lines[1].split()[-1]
            address = link.partition("/sign-in")[0]
            with httpx.Client(headers={"Origin": address}, follow_redirects=True) as client:
                shown = client.post(f"{address}/sign-in", data={"token": link.rpartition("=")[2]})
                assert "hippocampus" in shown.text
            # Not SIGINT, which a test run in the background ignores, with all that it starts.
            page.terminate()
            assert page.wait(60) == 0
        finally:
            page.kill()
