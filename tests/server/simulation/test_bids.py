"""Simulations on a folder of BIDS: plan and hospitals from the channels and subjects that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.federation import FederationConfig
from common.errors import DataError
from server.simulation.data_setup import examine, find_simulated_dataset
from tests.bids import write_dataset, write_derivative, write_label, write_scan

SUBJECTS = ("01", "02", "03", "04")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    root = write_dataset(tmp_path / "study", SUBJECTS)
    for number, subject in enumerate(SUBJECTS):
        for session in ("1", "2"):
            case = f"sub-{subject}_ses-{session}"
            for suffix in ("T1w", "T2w"):
                write_scan(root, f"{case}_{suffix}", 10 * number + int(session))
            write_label(write_derivative(root), f"{case}_dseg")
    return root


def config(*channels: str) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": "study",
            "labels": {1: "anterior", 2: "posterior"},
            "channels": list(channels) or None,
            "modality": "MR",
            "rounds": 1,
            "simulation": {"partition": {"method": "iid", "sites": 2, "validation_fraction": 0.5}},
        }
    )


def test_channels_are_those_of_the_federation_and_no_subject_is_at_two_hospitals(study: Path, tmp_path: Path) -> None:
    dataset, plan, partition = examine(config("T2w"), study, tmp_path / "cache", lambda event: None)
    assert plan.channels == ("T2w",)
    assert all(case.images[0].name.endswith("_T2w.nii.gz") and len(case.images) == 1 for case in dataset.cases)
    owners = [{name.split("_")[0] for name in (*site.train, *site.validation)} for site in partition.sites.values()]
    assert len(owners) == 2 and not owners[0] & owners[1]
    assert set().union(*owners) == {f"sub-{subject}" for subject in SUBJECTS}


def test_a_federation_without_channels_takes_all(study: Path) -> None:
    assert find_simulated_dataset(config(), study).channels == ("T1w", "T2w")


def test_a_channel_that_is_not_there_is_refused(study: Path) -> None:
    with pytest.raises(DataError, match="holds T1w, T2w, and FLAIR is wanted"):
        find_simulated_dataset(config("FLAIR"), study)
    (study / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T2w.nii.gz").unlink()
    with pytest.raises(DataError, match="has no T2w image"):
        find_simulated_dataset(config("T1w", "T2w"), study)
