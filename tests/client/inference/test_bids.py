"""Predictions for a folder of BIDS: of every session, from the channels that the model names."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from client.inference.predict import PredictOptions, Predictor, predict_path
from common.imaging.datasets.comparison import SiteTerms
from tests.bids import write_dataset, write_derivative, write_label, write_scan
from tests.client.inference.test_predict import make_bundle


def test_scans_are_segmented_from_the_channels_that_the_model_names(tmp_path: Path) -> None:
    """In the model's order, whether they have a label map or not."""
    root = write_dataset(tmp_path / "study", ["01"])
    for seed, case in enumerate(("sub-01_ses-1", "sub-01_ses-2")):
        for suffix in ("FLAIR", "T1w", "T2w"):
            write_scan(root, f"{case}_{suffix}", 10 * seed + len(suffix) + (suffix == "T2w"))
        for channel, suffix in enumerate(("T1w", "T2w")):
            plain = tmp_path / "plain" / f"{case}_000{channel}.nii.gz"
            plain.parent.mkdir(exist_ok=True)
            plain.symlink_to(Path(root, *case.split("_"), "anat", f"{case}_{suffix}.nii.gz"))
    write_label(write_derivative(root), "sub-01_ses-1_dseg")
    terms = SiteTerms(channels_map={"T1w": "T1", "T2w": "T2"})
    predictor = Predictor.open(make_bundle(tmp_path / "model", channels=2), PredictOptions(terms=terms))
    report = predict_path(predictor, root, tmp_path / "out")
    assert (report.failures, report.exit_status) == ((), 0)
    assert [path.name for path in report.written] == ["sub-01_ses-1.nii.gz", "sub-01_ses-2.nii.gz"]
    predict_path(Predictor.open(tmp_path / "model"), tmp_path / "plain", tmp_path / "expected")
    for path in report.written:
        ours, theirs = nibabel.load(path), nibabel.load(tmp_path / "expected" / path.name)
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert len(np.unique(np.asarray(ours.dataobj))) > 1
