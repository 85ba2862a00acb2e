from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import OutputError
from server.network_setup import make_run_folder


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
