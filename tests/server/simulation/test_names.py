"""A simulation of scans with hostile names: no file that people open, and no line on the terminal, obeys one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.imaging.phantoms.dataset import write_phantom_dataset
from server.cli.entry import main
from tests import hostile
from tests.server.reporting.test_report import Page

FEDERATION = r"""
name: names
description: "a\e[2Jb"
rounds: 1
strategy: {min_sites: 1}
model: {channels: [8, 16], groups: 4}
training: {local_steps: 1, precision: float32}
simulation: {partition: {method: iid, sites: 1, validation_fraction: 0.5}}
"""


@pytest.mark.long
def test_a_run_shows_the_names_of_its_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_phantom_dataset(tmp_path / "data", [len(hostile.NAMES)], seed=0, shape=(24, 24, 24))
    for name, image in zip(hostile.NAMES, sorted((data / "imagesTr").glob("*.nii.gz")), strict=True):
        label = data / "labelsTr" / image.name
        for file in (image, label):
            file.rename(file.with_name(f"{name}.nii.gz"))
    declared = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({key: declared[key] for key in declared if "raining" not in key}))
    for table in data.glob("*.csv"):
        table.unlink()
    (tmp_path / "federation.yaml").write_text(FEDERATION)
    run = tmp_path / "run"
    assert (
        main(["simulate", str(tmp_path / "federation.yaml"), "--data", str(data), "--out", str(run), "--no-cache"]) == 0
    )
    printed = capsys.readouterr()
    assert not hostile.obeyed(printed.out + printed.err)
    files = [path for path in run.rglob("*") if path.suffix in (".html", ".csv", ".json", ".jsonl", ".yaml", ".log")]
    assert {path.name for path in files} >= {"report.html", "validation.csv", "partition.json", "rounds.jsonl"}
    for file in files:
        assert not hostile.obeyed(file.read_text(encoding="utf-8")), file
    assert not [tag for tag, _ in Page(run / "report.html").elements if tag == "script"]
