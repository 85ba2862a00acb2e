"""Status: what is shown is what lies in the folders; another try begins anew."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from client.cli import main
from client.node.folders import (
    ATTEMPTS_FILE,
    INSTANCES,
    LOCK_FILE,
    RESULTS,
    SEGMENTER_FILE,
    STATUS_FILE,
    STUDY_FILE,
    NodeFolders,
    names_in,
    write_note,
)
from client.node.service import remove_old
from client.node.status import node_status, retry, status_lines
from client.node.traces import remember_made
from common.errors import ConfigError, FedvoxError, OutputError
from common.system.locks import lock_file
from tests.client.node.studies import put_waiting
from tests.e2e.commands import call

CONFIG = """
ae_title: FEDVOX
callers: [{ae_title: CT1, addresses: [10.0.0.0/8]}]
destinations: [{name: pacs, ae_title: PACS, host: pacs.example, port: 104}]
"""


@pytest.fixture
def folders(tmp_path: Path) -> NodeFolders:
    """A study that was set aside, one that waits, a result that was sent and one that cannot be."""
    (tmp_path / "node.yaml").write_text(CONFIG)
    folders = NodeFolders(tmp_path / "state")
    with folders.locked():
        put_waiting(folders, "1.1", "1.1.1")
        bad = put_waiting(folders, "1.2", "1.2.1")
        (bad / RESULTS).mkdir()
        refused = {"title": "series 3", "state": "refused", "reason": "lacks 1 slice\x1b[31m"}
        write_note(bad / RESULTS / STUDY_FILE, {"series": [refused]})
        write_note(bad / ATTEMPTS_FILE, {"attempts": 1})
        bad.rename(folders.set_aside / "1.2")
        for home, result in ((folders.sent, "2.1"), (folders.unsent, "2.2"), (folders.outbox, "2.3")):
            (home / "pacs").mkdir()
            (home / "pacs" / f"{result}.dcm").write_text(result)
            remember_made(folders, home / "pacs")
        write_note(folders.unsent / "pacs" / "2.2.json", {"reason": "status 0xA900"})
    return folders


def test_shows_what_lies_where(folders: NodeFolders) -> None:
    write_note(folders.outbox / "pacs" / "2.3.json", {"reason": "status 0xA700"})
    status = node_status(folders)
    assert not status["running"] and status["waiting"] == 1 and status["incoming"] == status["done"] == 0
    pacs = status["destinations"]["pacs"]
    assert pacs["waiting"] == pacs["sent"] == 1 and pacs["problem"] == ""
    assert pacs["failed"] == {"2.3": "status 0xA700"} and pacs["unsent"] == {"2.2": "status 0xA900"}
    shown = "\n".join(status_lines(status))
    assert r"study 1.2: series 3: lacks 1 slice\x1b[31m" in shown and "2.2: status 0xA900" in shown
    assert "tried again: 2.3: status 0xA700" in shown


def test_commands_show_it_and_try_again(folders: NodeFolders) -> None:
    config = folders.root.parent / "node.yaml"
    shown = call(main, "listen", "status", "--config", config)
    assert shown.returncode == 1 and "not running" in shown.stdout and "1 set aside" in shown.stdout
    assert '"unsent"' in call(main, "listen", "status", "--config", config, "--json").stdout
    tried = call(main, "listen", "retry", "--config", config)
    assert tried.returncode == 0 and "1 study and 1 result" in tried.stdout
    assert names_in(folders.waiting) == ["1.1", "1.2"]
    assert names_in(folders.waiting / "1.2") == [INSTANCES]
    assert names_in(folders.outbox / "pacs") == ["2.2.dcm", "2.3.dcm"]
    assert not names_in(folders.set_aside) and not names_in(folders.unsent / "pacs")
    assert retry(folders, ["pacs"]) == "0 studies and 0 results are tried again"


def test_two_nodes_do_not_share_a_folder(folders: NodeFolders) -> None:
    with folders.locked():
        assert node_status(folders)["running"]
        with pytest.raises(FedvoxError, match="another node"), folders.locked():
            pass


def test_only_what_was_done_and_sent_is_removed(folders: NodeFolders) -> None:
    put_waiting(folders, "1.3", "1.3.1").rename(folders.done / "1.3")
    remove_old(folders, 3600)
    assert names_in(folders.done) == ["1.3"] and names_in(folders.sent / "pacs")
    remove_old(folders, -1)
    assert not names_in(folders.done) and not names_in(folders.sent / "pacs")
    assert names_in(folders.waiting) == ["1.1"] and names_in(folders.set_aside) == ["1.2"]
    assert names_in(folders.unsent / "pacs") and names_in(folders.outbox / "pacs") and not names_in(folders.trash)


def test_running_without_a_model_is_wrong_usage(folders: NodeFolders) -> None:
    shown = call(main, "listen", "--config", folders.root.parent / "node.yaml")
    assert shown.returncode == 2 and "--model" in shown.stderr
    shown = call(main, "listen", "--config", folders.root.parent / "node.yaml", "--model", folders.root)
    assert shown.returncode == 2 and "model.json" in shown.stderr


def test_a_retry_that_was_killed_is_made_again(folders: NodeFolders) -> None:
    shutil.rmtree(folders.set_aside / "1.2" / RESULTS)
    assert node_status(folders)["set_aside"] == {"1.2": ["study.json is missing or of another version"]}
    assert retry(folders, ["pacs"]) == "1 study and 1 result are tried again"
    assert names_in(folders.waiting) == ["1.1", "1.2"]


def test_what_is_no_study_is_shown(folders: NodeFolders) -> None:
    (folders.set_aside / "notes\x1b").write_text("mine")
    (folders.done / "x").mkdir()
    status = node_status(folders)
    assert status["strays"] == ["done/x", "set-aside/notes\x1b"] and list(status["set_aside"]) == ["1.2"]
    assert "no study, left alone: done/x and 1 more" in "\n".join(status_lines(status))


def test_a_folder_with_other_content_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "trash").mkdir()
    (tmp_path / "trash" / "precious.txt").write_text("x")
    with pytest.raises(ConfigError, match="no state folder"), NodeFolders(tmp_path).locked():
        pass
    assert names_in(tmp_path) == ["trash"] and names_in(tmp_path / "trash") == ["precious.txt"]


def test_folders_are_for_their_account_alone(tmp_path: Path) -> None:
    folders = NodeFolders(tmp_path / "state")
    folders.root.mkdir()
    (folders.root / "lost+found").mkdir()
    with folders.locked():
        folders.waiting.chmod(0o755)
    with folders.locked():
        assert {path.stat().st_mode & 0o777 for path in (folders.root, folders.waiting)} == {0o700}


def test_a_look_at_a_starting_node_does_not_keep_it_from_starting(folders: NodeFolders) -> None:
    looking = lock_file(folders.root / LOCK_FILE, shared=True)
    threading.Timer(0.2, looking.__exit__).start()
    with folders.locked():
        assert folders.is_running()


def test_a_segmenter_that_cannot_start_is_a_problem(folders: NodeFolders) -> None:
    state = {"state": "restarting", "pid": None, "exit_status": 2}
    with folders.locked():
        write_note(folders.root / STATUS_FILE, {"segmenter": state})
        write_note(folders.root / SEGMENTER_FILE, {"problem": "model.safetensors: is damaged"})
        status = node_status(folders)
        assert status["problem"] == "model.safetensors: is damaged"
        assert "cannot segment: model.safetensors" in "\n".join(status_lines(status))
        write_note(folders.root / STATUS_FILE, {"segmenter": state | {"state": "ready", "pid": 7}})
        write_note(folders.root / SEGMENTER_FILE, {"pid": 7})
        status = node_status(folders)
        assert not status["problem"] and status["segmenter"] == "ready"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another account")
def test_another_account_is_told_so(folders: NodeFolders) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(FedvoxError, match="for the account of the node alone"):
            node_status(folders)
        with pytest.raises(OutputError, match="Permission denied"):
            retry(folders, ["pacs"])
    finally:
        os.seteuid(0)


def test_a_damaged_result_is_made_again_and_no_other(folders: NodeFolders) -> None:
    for study, result in (("1.3", "2.2"), ("1.4", "2.1")):
        home = put_waiting(folders, study, "1.3.1")
        (home / RESULTS).mkdir()
        (home / RESULTS / f"{result}.dcm").write_text(result)
        home.rename(folders.done / study)
    (folders.unsent / "pacs" / "2.2.dcm").write_text("2.")
    assert retry(folders, ["pacs"]) == "2 studies and 0 results are tried again; still set aside, see status: 1 result"
    assert names_in(folders.waiting) == ["1.1", "1.2", "1.3"] and names_in(folders.done) == ["1.4"]
    assert names_in(folders.waiting / "1.3") == [INSTANCES]


def test_results_for_a_destination_that_is_gone_stay_set_aside(folders: NodeFolders) -> None:
    assert retry(folders, []) == "1 study and 0 results are tried again; still set aside, see status: 1 result"
    assert names_in(folders.unsent / "pacs") == ["2.2.dcm", "2.2.json"]


def test_what_is_no_destination_is_left_alone(folders: NodeFolders) -> None:
    for home in (folders.outbox, folders.unsent, folders.sent, folders.arrived):
        (home / "README").write_text("mine")
    assert list(node_status(folders)["destinations"]) == ["pacs"]
    remove_old(folders, 0)
    assert "0 results" not in retry(folders, ["pacs"])
