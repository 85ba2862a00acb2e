"""An import that is killed, and one that runs beside another."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.cli import main
from common.system.locks import lock_file
from tests.client.pacs.site import Site
from tests.client.pacs.studies import study, write
from tests.conftest import REPOSITORY
from tests.kill_schedule import chosen
from tests.orthanc import Orthanc

WATCHED = """
import sys
from pathlib import Path
from client.cli import main
from tests.kill_schedule import kill_before, on_operations, write_kinds
folder, act, value, *arguments = sys.argv[1:]
on_operations(Path(folder), kill_before(int(value)) if act == "kill" else write_kinds(Path(value)))
sys.exit(main(arguments))
"""


def process(site: Site, act: str, value: str) -> int:
    command = [sys.executable, "-c", WATCHED, str(site.folder), act, value, *site.arguments()]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=False).returncode


def content(site: Site) -> dict[str, bytes]:
    """All files of the dataset by name: names and contents follow from the originals and the hospital's secret."""
    return {path.relative_to(site.out).as_posix(): path.read_bytes() for path in site.files}


def prepare(orthanc: Orthanc, site: Site, made: Path) -> None:
    orthanc.upload(write(made, study("A1", 1), study("A2", 2)))
    site.write_address(**site.peer(orthanc))
    site.write_cohort("A1", "A2")


def imports_the_same_after(site: Site, kills: Sequence[int], expected: dict[str, bytes]) -> None:
    for number in kills:
        assert process(site, "kill", str(number)) == -9
        # Whatever is there is whole.
        names = {path.split("/")[0] for path in expected}
        for folder in site.out.glob("study-*"):
            assert folder.name in names
            assert len(list(folder.iterdir())) == 6
        assert process(site, "kill", "1000000") == 0
        assert content(site) == expected
        assert not any(path.name.startswith(".") for path in [*site.out.iterdir(), *site.beside.iterdir()])
        for path in site.files:
            path.unlink()
        for folder in site.out.iterdir():
            folder.rmdir()


@pytest.fixture
def undisturbed(orthanc: Orthanc, site: Site, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Kinds of operations on files of an import from start to end, and its dataset, which is removed again."""
    prepare(orthanc, site, tmp_path / "made")
    kinds = tmp_path / "kinds"
    assert process(site, "note", str(kinds)) == 0
    expected = content(site)
    assert len(expected) == 12
    for path in site.files:
        path.unlink()
    for folder in site.out.iterdir():
        folder.rmdir()
    return kinds, expected


def test_an_import_that_is_killed_is_continued_with_the_same_result(
    site: Site, undisturbed: tuple[Path, dict[str, bytes]]
) -> None:
    kinds, expected = undisturbed
    count = len(kinds.read_text().splitlines())
    imports_the_same_after(site, random.Random(5).sample(range(count), 2), expected)


@pytest.mark.long
def test_an_import_is_continued_after_a_kill_at_every_kind_of_operation(
    site: Site, undisturbed: tuple[Path, dict[str, bytes]]
) -> None:
    kinds, expected = undisturbed
    imports_the_same_after(site, list(chosen(kinds, "each-kind")), expected)


def test_a_second_import_into_the_same_folder_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.write_address(ae_title="A", host="127.0.0.1", port=1)
    site.write_cohort("A1")
    site.beside.mkdir()
    with lock_file(site.beside / "lock"):
        assert main(site.arguments()) == 1
    assert "another import into" in capsys.readouterr().err
    assert [path.name for path in site.beside.iterdir()] == ["lock"]
