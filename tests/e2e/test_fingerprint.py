"""Three hospitals share fingerprints, and the kits hold the plan of their pooled data: with the real commands."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.consent.site_config import SiteConfig
from client.state_folder import AUDIT_FILE
from common.audit import verify
from common.config.federation import load_federation
from common.config.kit import check_kit_files, read_kit
from common.imaging.datasets.dataset import find_dataset
from common.plan.plan import Plan
from common.planning.fingerprint import fingerprint_dataset
from common.planning.fingerprint_file import read_fingerprint
from common.planning.resolve import check_plan, plan_from_config, resolve_plan
from common.planning.shared_fingerprint import fingerprint_to_share, merge

GROUPS = {"north": "uint8", "east": "raw-low", "south": "raw-high"}
CASES = 24
OPEN = """\
name: hippocampus
labels: {1: Anterior, 2: Posterior}
channels: [MRI]
rounds: 2
model: {channels: [8, 16, 32, 64]}
network: {address: federation.example.org, sites: [north, east, south]}
"""


def command(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", f"{package}.cli", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "100"})


def done(package: str, *arguments: object) -> str:
    process = command(package, *arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(package: str, *arguments: object) -> str:
    process = command(package, *arguments)
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    return process.stderr


def deal(source: Path, folder: Path, names: list[str]) -> None:
    """Makes a dataset folder of some cases of a Decathlon dataset."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / f"{name}.nii.gz").symlink_to(source / part / f"{name}.nii.gz")
    content = json.loads((source / "dataset.json").read_text())
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    content |= {"training": pairs, "numTraining": len(pairs), "test": [], "numTest": 0}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def hospitals(hippocampus: Path, tmp_path: Path) -> list[str]:
    """Datasets of the three groups that really occur in the data; returns the names of all cases."""
    with (hippocampus / "acquisition_groups.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    everything = []
    for site, group in GROUPS.items():
        names = sorted(row["case"] for row in rows if row["group"] == group)[:CASES]
        deal(hippocampus, tmp_path / "data" / site, names)
        everything += names
    deal(hippocampus, tmp_path / "data" / "pooled", everything)
    return everything


def test_three_hospitals_choose_the_plan_of_their_pooled_data(hospitals: list[str], tmp_path: Path) -> None:
    file, kits = tmp_path / "federation.yaml", tmp_path / "kits"
    file.write_text(OPEN)
    config = load_federation(file)
    assert "none of north, east, south; send them this" in refused("server", "provision", file, "--out", kits)
    assert not kits.exists()
    (tmp_path / "state").mkdir()
    for site in GROUPS:
        key = tmp_path / site
        done("client", "request", "--name", site, "--out", key)
        place = ("--data", tmp_path / "data" / site, "--key", key, "--no-site", "--out", key / "shared.json")
        more = ("--state", tmp_path / "state") if site == "north" else ()
        said = done("client", "fingerprint", "--name", site, "--federation", file, *place, *more)
        assert f"{CASES} labelled cases; a cell of fewer than 5 patients is not shown." in said
        assert f"voxel size along x: {CASES} in about 1 mm; mean 1, standard deviation 0 mm" in said
        assert "Anterior: in at least 5 patients" in said and "intensity" not in said and "nothing was sent" in said
    assert verify(tmp_path / "state" / AUDIT_FILE).events == {"fingerprint_written": 1}

    given = [
        word
        for site in GROUPS
        for word in ("--request", tmp_path / site / f"{site}.csr", "--fingerprint", tmp_path / site / "shared.json")
    ]
    said = done("server", "provision", file, "--out", kits, *given)
    whole = "chosen from the fingerprints of 3 sites, 72 cases (north 24, east 24, south 24):"
    assert whole in said and "voxel size 1 x 1 x 1 mm" in said and "patches of 40 x 56 x 40 voxels" in said

    # Merged is pooled: every sum that no site withholds, exactly.
    cases = find_dataset(tmp_path / "data" / "pooled").cases
    pooled = fingerprint_to_share(cases, 2, SiteConfig().minimum_cell, False)
    merged = merge([read_fingerprint(tmp_path / site / "shared.json").fingerprint for site in GROUPS])
    for (name, one, scale), (_, other, _) in zip(merged.parts(), pooled.parts(), strict=True):
        assert one.count == other.count == len(hospitals), name
        assert one.total is None or (one.total, one.squares) == (other.total, other.squares), name
        medians = np.array([one.percentile(50, scale), other.percentile(50, scale)])
        assert np.ptp(scale.cells(scale.whole(medians))) <= 1, name
    assert sum(item.total is not None for _, item, _ in merged.parts()) >= 3

    # The plan is that of the pooled data, follows from the kit's own file, and is what a person reviews.
    kit = kits / "sites" / "north"
    plan, settled = Plan.model_validate_json((kit / "plan.json").read_bytes()), load_federation(kit / "federation.yaml")
    expected = resolve_plan(config, fingerprint_dataset(cases, (1, 2)), ("MRI",), {1: "Anterior", 2: "Posterior"})
    assert plan == expected == plan_from_config(settled)
    check_plan(plan, settled)
    check_kit_files(kit, read_kit(kit, "site"))
    assert {"chosen.json", "plan.json"} <= set(read_kit(kit).files)
    shown = " ".join(done("client", "review", "--kit", kit).split())
    assert "What your site has shared already" in shown and "how many labelled cases there are" in shown
    assert "follow for all sites: voxel size 1 x 1 x 1 mm (preprocessing.spacing); patches of 40 x 56 x 40" in shown

    # Again, without the files: the same kits.
    before = {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()}
    said = done("server", "provision", file, "--out", kits)
    assert said.count("unchanged") == 3
    assert {path: path.read_bytes() for path in kits.rglob("*") if path.is_file()} == before
