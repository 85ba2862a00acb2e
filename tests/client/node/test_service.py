"""Service: what is wrong is said before anything is written, and a node that hears nobody ends."""

import socket
from pathlib import Path
from typing import Any, cast

import pytest

from client.cli import main
from client.node.folders import NodeFolders
from client.node.incoming import Incoming
from client.node.service import _Upkeep
from client.pacs.receiver import AllowedPeer, Receiver, ReceiverSettings
from common.errors import FedvoxError
from common.system.supervisor import Supervisor
from tests.e2e.commands import call

PAGE = Path(__file__).resolve().parents[3] / "deploy/docs/node.md"


def test_the_pages_example_names_the_file_that_is_missing_and_leaves_nothing(tmp_path: Path) -> None:
    example = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    (tmp_path / "node.yaml").write_text(example)
    shown = call(main, "listen", "--config", tmp_path / "node.yaml", "--model", tmp_path)
    assert shown.returncode == 2 and "archive.token" in shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["node.yaml"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_node_that_hears_nobody_any_more_ends(tmp_path: Path) -> None:
    broken = AllowedPeer("MODALITY", (cast(Any, None),))  # whatever ends the thread that listens
    folders = NodeFolders(tmp_path / "state")
    with folders.locked():
        incoming = Incoming(folders, 60, 10, 0)
        with Receiver(ReceiverSettings("FEDVOX", "127.0.0.1", 0, (broken,)), incoming.keep) as receiver:
            assert receiver.is_listening
            socket.create_connection(("127.0.0.1", receiver.port), timeout=20).close()
            with pytest.raises(FedvoxError, match="no longer listening"):
                _Upkeep(7, folders, incoming, Supervisor([], print)).run(receiver)
