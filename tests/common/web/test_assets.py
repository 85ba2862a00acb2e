"""What others made is as they made it, has its licence, and nothing loads from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from common.web.shell import Shell
from common.web.visits import Role
from tests.common.web.side import signed_in
from tests.common.web.test_texts import ROOMS

OURS = {"style.css", "page.css", "page.js", "icon.svg"}


@pytest.mark.parametrize("static", [room / "static" for room in ROOMS if (room / "static").is_dir()], ids=str)
def test_files_of_others_are_those_of_the_manifest(static: Path) -> None:
    manifest = json.loads((static / "manifest.json").read_text(encoding="utf-8"))
    files = {path.name for path in static.iterdir() if path.is_file()} - {"manifest.json"}
    assert set(manifest) <= files
    assert {name for name in files if ".min." in name} <= set(manifest)
    for name, about in manifest.items():
        assert hashlib.sha256((static / name).read_bytes()).hexdigest() == about["sha256"], name
        assert (static / about["licence_file"]).stat().st_size > 300
        assert about["package"] and about["version"] and about["licence"]


def test_a_file_is_kept_by_browsers_until_it_changes(shell: Shell) -> None:
    client = signed_in(shell, Role.LOOK)
    page = client.get("/").text
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(addresses) >= 7
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200
        name, _, mark = address.removeprefix("/static/").partition("?")
        assert hashlib.sha256(answer.content).hexdigest().startswith(mark), name


def test_a_page_names_no_other_host_and_has_no_inline_script_or_style(shell: Shell) -> None:
    page = signed_in(shell, Role.ACT).get("/").text
    assert not re.search(r'(?:src|href|action)="(?:[a-z]+:|//)', page)
    assert not re.search(r"<style|<script>|\sstyle=|\son[a-z]+=|javascript:", page)
