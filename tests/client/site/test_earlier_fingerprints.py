"""Two fingerprints of one hospital: no pair from which few patients could be subtracted."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.cli import main
from client.site.earlier_fingerprints import RECORD_FILE
from client.site.signing_request import make_request
from common.config.federation import FederationConfig
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.dataset import write_phantom_dataset

Make = Callable[..., int]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a fingerprint of six patients, of which some are left out; returns the command's exit status."""
    write_phantom_dataset(tmp_path / "data", (6,), 0, (16, 16, 16))
    make_request("north", tmp_path / "key")
    declared = find_dataset(tmp_path / "data")
    content = {"name": "balls", "rounds": 1, "strategy": {"min_sites": 1}, "labels": declared.labels}
    content |= {"channels": declared.channels, "network": {"address": "fl.example.org", "sites": ["north"]}}
    (tmp_path / "federation.yaml").write_text(FederationConfig.model_validate(content).resolved())
    pairs = json.loads((tmp_path / "data/dataset.json").read_text())["training"]

    def made(without: int = 0, minimum_cell: int = 3, out: str = "north.json") -> int:
        for n, pair in enumerate(pairs):
            for kind in ("image", "label"):
                here = tmp_path / "data" / pair[kind]
                away = here.with_suffix(".away")
                source, target = (here, away) if n < without else (away, here)
                if source.exists():
                    source.rename(target)
        declaration = json.loads((tmp_path / "data/dataset.json").read_text())
        declaration |= {"training": pairs[without:], "numTraining": 6 - without}
        (tmp_path / "data/dataset.json").write_text(json.dumps(declaration))
        (tmp_path / "site.yaml").write_text(f"minimum_cell: {minimum_cell}\n")
        words = ["fingerprint", "--name", "north", "--federation", str(tmp_path / "federation.yaml")]
        words += ["--data", str(tmp_path / "data"), "--key", str(tmp_path / "key")]
        return main([*words, "--site", str(tmp_path / "site.yaml"), "--out", str(tmp_path / out)])

    return made


def test_what_differs_by_few_patients_is_refused(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(without=1) == 0
    assert make(without=1, out="again.json") == 0, "the same once more tells nothing new"
    assert make(out="more.json") == 2 and not (tmp_path / "more.json").exists()
    said = capsys.readouterr().err
    assert (
        "1 patient changed since, fewer than 3" in said and f"send the one that was made then ({tmp_path}/again" in said
    )
    assert make(without=3, out="less.json") == 2, "two fewer"
    assert make(without=1, minimum_cell=2, out="finer.json") == 2
    assert "of the same patients, with minimum_cell 3 in place of 2" in capsys.readouterr().err
    assert make(minimum_cell=6, out="coarse.json") == 2, "one patient is few for the coarser one too"


def test_more_patients_make_another_fingerprint(make: Make, tmp_path: Path) -> None:
    assert make(without=3) == 0
    assert make(out="all.json") == 0
    # Neither new names nor other packing make other patients; one changed label map does.
    (label,) = (tmp_path / "data").glob("labelsTr/*_001.nii.gz")
    content = gzip.decompress(label.read_bytes())
    label.write_bytes(gzip.compress(content, 1))
    assert make(out="all.json") == 0
    label.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    assert make(out="changed.json") == 2 and not (tmp_path / "changed.json").exists()


def test_the_record_is_private_and_its_damage_is_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0
    record = tmp_path / "key" / RECORD_FILE
    assert record.stat().st_mode & 0o777 == 0o600 and "phantom" not in record.read_text()
    record.write_text(record.read_text().replace('"minimum_cell": 3', '"minimum_cell": 2', 1) + " ")
    assert make(out="again.json") == 2
    assert f"{RECORD_FILE}: was changed or cut" in capsys.readouterr().err
