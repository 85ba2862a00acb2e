from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import OutputError
from common.supervise import LARGEST_LOG_BYTES
from server.app_lock import DATABASE, OBJECTS, SPOOL
from server.network_setup import forget_messages, make_run_folder, proxy_process
from server.proxy import REFUSED_LOG, Listen


def test_a_new_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Sites' updates and scores lie in it, and the token of the server app."""
    run = tmp_path / "runs" / "first"
    make_run_folder(run)
    assert run.stat().st_mode & 0o077 == 0
    run.chmod(0o750)
    make_run_folder(run)
    assert run.stat().st_mode & 0o777 == 0o750, "somebody wanted it so"


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        make_run_folder(tmp_path)


def test_of_a_run_that_is_over_no_sites_update_stays(tmp_path: Path) -> None:
    for name in (
        f"{OBJECTS}/piece",
        f"{SPOOL}/site.update",
        DATABASE,
        f"{DATABASE}-wal",
        "checkpoints/round-1",
        "state.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    forget_messages(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"round-1", "state.json"}
    forget_messages(tmp_path)


@pytest.mark.parametrize(("grown", "kept"), [(0, [REFUSED_LOG]), (1, [f"{REFUSED_LOG}.1"])])
def test_what_strangers_have_had_refused_does_not_fill_the_disk(tmp_path: Path, grown: int, kept: list[str]) -> None:
    """Whoever reaches the port can have a line written with every request."""
    folder = tmp_path / "proxy"
    folder.mkdir()
    with (folder / REFUSED_LOG).open("wb") as log:
        log.truncate(LARGEST_LOG_BYTES + grown)
    proxy_process(tmp_path, tmp_path / "kit", "nginx", Listen("127.0.0.1", 9443), tmp_path / "superlink")
    assert sorted(path.name for path in folder.glob(f"{REFUSED_LOG}*")) == kept
