"""A federation of three sites on real scans gives the model that a simulation on the same scans gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.models.bundle import load_bundle
from tests.e2e.network_federation import assert_same_model, federation, simulated

pytestmark = pytest.mark.network

CASES_PER_SITE = 4


def deal(source: Path, folder: Path, first: int) -> None:
    """Makes a hospital's dataset folder of some cases of a Decathlon dataset."""
    scans = sorted((source / "imagesTr").glob("*.nii.gz"))[first : first + CASES_PER_SITE]
    assert len(scans) == CASES_PER_SITE
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
        for scan in scans:
            (folder / name / scan.name).symlink_to(source / name / scan.name)
    content = json.loads((source / "dataset.json").read_text())
    content["training"] = [{"image": f"./imagesTr/{scan.name}", "label": f"./labelsTr/{scan.name}"} for scan in scans]
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": len(scans), "test": [], "numTest": 0}))


def test_three_hospitals_with_real_scans_get_the_model_of_the_simulation(hippocampus: Path, tmp_path: Path) -> None:
    settings = ("rounds=2", "labels={1: Anterior, 2: Posterior}", "channels=[MRI]")
    with federation(tmp_path, settings=settings) as made:
        for index, site in enumerate(made.sites):
            deal(hippocampus, tmp_path / "data" / site, index * CASES_PER_SITE)
        made.start(*made.sites)
        made.finish(200)
        rounds = made.rounds()
        assert [(line["round"], line["phase"]) for line in rounds] == [(1, "train"), (2, "train"), (3, "evaluate")]
        for line in rounds:
            assert {name: (site["status"], site["examples"]) for name, site in line["sites"].items()} == dict.fromkeys(
                made.sites, ("ok", CASES_PER_SITE - 1)
            )
        inline = simulated(made, tmp_path / "inline")
        for ours, theirs in zip(rounds, inline.read_rounds(), strict=True):
            assert ours["dice"] == pytest.approx(theirs["dice"], abs=1e-6)
        assert_same_model(made.run, inline.path, 2)
        assert load_bundle(made.run / "model").plan.labels == {1: "Anterior", 2: "Posterior"}
