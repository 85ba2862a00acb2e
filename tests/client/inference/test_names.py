"""Whatever files, labels and channels are called, check, predict and evaluate show it, and nothing obeys it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.cli.entry import main
from tests import hostile
from tests.client.inference.test_predict import OBLIQUE, SHAPE, make_bundle, make_scan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("names") / "model", None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A case of each name; the first two have errors and the third a warning."""
    root = tmp_path / "da\x1b[1mta"
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 3:9, 3:9], label[10:12, 3:9, 3:9] = 1, 2
    (root / "labelsTr").mkdir(parents=True)
    for seed, name in enumerate(hostile.NAMES):
        make_scan(root / "imagesTr" / f"{name}.nii.gz", seed)
        nibabel.Nifti1Image(0 * label if seed == 2 else label, OBLIQUE).to_filename(
            root / "labelsTr" / f"{name}.nii.gz"
        )
    (root / "imagesTr" / f"{hostile.NAMES[0]}.nii.gz").write_bytes(b"\x1f\x8bdamaged")
    bad = nibabel.Nifti1Image(np.full(SHAPE, np.nan, np.float32), OBLIQUE)
    bad.to_filename(root / "imagesTr" / f"{hostile.NAMES[1]}.nii.gz")
    (root / "imagesTr" / "no\x1b[2Jtes\nerror: forged.txt").write_text("")
    declared = {
        "modality": {"0": "T\x1b[1m1"},
        "labels": {"0": "background", "1": "head\x9b1m", "2": "tail\nerror: forged"},
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert not hostile.obeyed(text)
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]
    return text


def test_check_shows_names(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", str(data)]) == 1
    text = shown(capsys)
    assert r"a\x1b[2Jb.nii.gz: is a truncated or damaged gzip file" in text
    assert r"c\nerror: forged.nii: all is lost.nii.gz: holds" in text
    assert r"d\r\x9b31me" in text and r"tail\nerror: forged ml" in text
    assert main(["check", "--data", str(data), "--json"]) == 1
    content = json.loads(shown(capsys))
    assert {case["name"] for case in content["cases"]} == set(hostile.NAMES)


def test_predict_shows_names_and_keeps_them(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o\x1b[1mut"
    assert main(["predict", "--model", str(model), "--input", str(data), "--output", str(out)]) == 1
    text = shown(capsys)
    assert r"o\x1b[1mut/d\r\x9b31me.nii.gz" in text
    assert "5 of 7 scans done" in text
    assert {path.name for path in out.iterdir()} == {f"{name}.nii.gz" for name in hostile.NAMES[2:]}
    assert main(["predict", "--model", str(model), "--input", str(data), "--output", str(out)]) == 1
    assert "exists (and 4 more)" in shown(capsys)


def test_evaluate_shows_names_in_table_and_file(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "metrics.csv"
    assert main(["evaluate", "--model", str(model), "--data", str(data), "--out", str(out)]) == 1
    assert "5 of 7 scans done" in shown(capsys)
    text = out.read_text(encoding="utf-8")
    assert not hostile.obeyed(text)
    with out.open(newline="", encoding="utf-8") as stream:
        cases = {row["case"] for row in csv.DictReader(stream)}
    expected = {r"d\r\x9b31me", r"f\u202eg", "<script>h&\"'", "'=1+1", r"i\u2028j\tk\x7f"}
    assert cases == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--data", "/no\x1b[2J\nwhere"],
        ["predict", "--model", "/no\x1b[2Jmodel", "--input", "x", "--output", "y"],
        ["check", "--data", ".", "--site", "no\x1b[2J.yaml"],
        ["check", "--data", ".", "--federation", "no\x1b[2J.yaml"],
        ["review", "--kit", "no\x1b[2Jkit"],
        ["status", "--kit", "no\x1b[2Jkit"],
        ["health", "--state", "no\x1b[2Jstate"],
    ],
)
def test_what_was_typed_is_not_obeyed_either(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) > 0
    shown(capsys)
