"""What an import keeps beside the dataset, and what it believes of it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client.cli import main
from client.pacs.dataset_folder import DatasetFolder, ImportRunningError
from common.errors import OutputError
from tests.client.pacs.odd_archive import OddArchive
from tests.client.pacs.site import Row, Site
from tests.client.pacs.studies import study
from tests.client.pacs.test_odd_archives import prepared
from tests.conftest import REPOSITORY
from tests.orthanc import private_network


def peer_of(archive: OddArchive) -> Row:
    return {"ae_title": "ODD", "host": "127.0.0.1", "port": archive.port, "idle_seconds": 60}


def test_what_is_there_is_believed_only_with_all_its_files(site: Site, tmp_path: Path) -> None:
    with private_network(), OddArchive(prepared(study("A1"), tmp_path / "made")).running() as archive:
        site.write_address(**peer_of(archive))
        site.write_cohort("A1")
        assert site.run()[0] == 0
        (site.files[0].parent / "label.nii.gz").write_bytes(b"a hospital's own")
        assert [one["outcome"] for one in site.run()[1]] == ["already there"]
        site.files[0].unlink()
        status, (result,) = site.run()
    assert (status, result["outcome"]) == (1, "refused")
    assert "1 of the 6 files in study-" in result["reason"]
    assert result["reason"].endswith("are missing or changed. Remove that folder to import the study again")


def test_a_study_is_compared_with_what_was_noted_of_it(tmp_path: Path) -> None:
    dataset = DatasetFolder(tmp_path / "scans")
    with dataset.opened():
        made = dataset.out / "made"
        made.mkdir()
        for name in ("a", "b", "c"):
            (made / name).write_bytes(b"12")
        dataset.note_study("study-1", made)
        made.rename(dataset.out / "study-1")
    study_1, note = dataset.out / "study-1", dataset.beside / "studies" / "study-1.json"
    assert json.loads(note.read_text(encoding="utf-8")) == {"a": 2, "b": 2, "c": 2}
    assert dataset.why_not_whole("study-1") == ""
    (study_1 / "a").write_bytes(b"1")
    (study_1 / "b").unlink()
    (study_1 / "b").mkdir()
    assert dataset.why_not_whole("study-1") == "2 of the 3 files in study-1 are missing or changed"
    for damage in (b"", b"[", b"[]", b"[" * 100_000, b"\xff"):
        note.write_bytes(damage)
        assert "cannot be read" in dataset.why_not_whole("study-1")
    note.unlink()
    assert dataset.why_not_whole("study-1") == "nothing says which files study-1 should have"


def test_one_dataset_has_one_secret_which_is_not_within_it(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with private_network(), OddArchive(prepared(study("A1"), tmp_path / "made")).running() as archive:
        site.write_address(**peer_of(archive))
        site.write_cohort("A1")
        for inside in (site.out / "identities", site.out, site.out / ".." / "scans" / "x"):
            assert main(site.arguments("--identities", str(inside))) == 2
            assert "lies in the dataset" in capsys.readouterr().err
        assert not site.out.exists()
        assert site.run("--identities", str(tmp_path / "one"))[0] == 0
        for more in ([], ["--dry-run"], ["--anonymise", "off"]):
            assert main(site.arguments("--identities", str(tmp_path / "other"), *more)) == 2
            assert "was imported with another secret" in capsys.readouterr().err
        assert len(site.files) == 6
        assert site.run("--identities", str(tmp_path / "one"))[0] == 0


def test_a_dry_run_makes_nothing(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with private_network(), OddArchive(prepared(study("A1"), tmp_path / "made")).running() as archive:
        site.write_address(**peer_of(archive))
        site.write_cohort("A1")
        before = sorted(tmp_path.rglob("*"))
        identities = tmp_path / "hospital" / "identities"
        assert main(site.arguments("--dry-run", "--identities", str(identities))) == 0
    assert "1 study: 1 to import" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_is_one_however_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("scans")
    real = DatasetFolder(tmp_path / "scans")
    with real.opened(), pytest.raises(ImportRunningError), DatasetFolder(tmp_path / "link").opened():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "scans", "scans.import"]


def test_what_has_just_come_is_for_the_owner_alone(tmp_path: Path) -> None:
    dataset = DatasetFolder(tmp_path / "scans")
    dataset.beside.mkdir()
    dataset.beside.chmod(0o777)
    with dataset.opened():
        assert {stat.S_IMODE(path.stat().st_mode) for path in (dataset.beside, dataset.work)} == {0o700}
    assert not dataset.work.exists()
    dataset.work.write_bytes(b"")
    with pytest.raises(OutputError, match="incoming"), dataset.opened():
        pass


def test_the_report_says_how_an_import_ended(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = site.beside / "report.json"
    site.write_cohort("A1", "A2")
    site.write_address(ae_title="A", host="127.0.0.1", port=1)
    assert main(site.arguments()) == 1
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["studies"] == []
    assert "A@127.0.0.1:1 cannot be reached" in found["ended_early"]
    slices = prepared([*study("A1", 1), *study("A2", 2)], tmp_path / "made")
    with OddArchive(slices).running() as archive:
        site.write_address(**peer_of(archive))
        # Whoever reads the output goes away after the first line.
        command = [sys.executable, "-m", "client.cli", *site.arguments()]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1
        found = json.loads(report.read_text(encoding="utf-8"))
        assert [one["outcome"] for one in found["studies"]] == ["imported"]
        assert found["ended_early"] == "BrokenPipeError"
        assert site.run()[0] == 0
    assert json.loads(report.read_text(encoding="utf-8"))["ended_early"] == ""
    assert "ended" not in capsys.readouterr().out
