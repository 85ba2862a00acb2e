"""Names as in the public BIDS example datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.imaging.datasets.bids.names import parse_name


@pytest.mark.parametrize(
    ("path", "case", "channel"),
    [
        ("ds001/sub-01/anat/sub-01_T1w.nii.gz", "sub-01", "T1w"),
        ("ds001/sub-01/anat/sub-01_inplaneT2.nii.gz", "sub-01", "inplaneT2"),
        ("ds114/sub-01/ses-retest/anat/sub-01_ses-retest_T1w.nii.gz", "sub-01_ses-retest", "T1w"),
        ("7t_trt/sub-22/ses-1/anat/sub-22_ses-1_T1map.nii.gz", "sub-22_ses-1", "T1map"),
        ("ds006/sub-14/ses-post/anat/sub-14_ses-post_T1w.nii", "sub-14_ses-post", "T1w"),
        ("qmri_mp2rage/sub-1/anat/sub-1_inv-1_MP2RAGE.nii.gz", "sub-1_inv-1", "MP2RAGE"),
        ("qmri_vfa/sub-01/anat/sub-01_flip-2_VFA.nii.gz", "sub-01_flip-2", "VFA"),
        ("in/sub-A/anat/sub-A_acq-mprage_ce-gd_run-02_T1w.nii.gz", "sub-A_acq-mprage_run-02", "ce-gd_T1w"),
        ("m/sub-01/ses-1/anat/sub-01_ses-1_space-T1w_desc-x_dseg.nii.gz", "sub-01_ses-1", "dseg"),
        ("m/sub-01/anat/sub-01_label-L_mask.nii.gz", "sub-01", "mask"),
    ],
)
def test_entities_make_the_case_and_the_suffix_the_channel(path: str, case: str, channel: str) -> None:
    name = parse_name(Path(path))
    assert name is not None
    assert (name.case, name.channel, name.subject) == (case, channel, case.split("_")[0])


@pytest.mark.parametrize(
    "path",
    [
        "d/sub-01/anat/T1w.nii.gz",
        "d/sub-01/anat/sub-02_T1w.nii.gz",
        "d/sub-01/ses-1/anat/sub-01_T1w.nii.gz",
        "d/sub-01/ses-1/anat/sub-01_ses-2_T1w.nii.gz",
        "d/sub-01/anat/sub-01_T2w_label-lesion_seg.nii.gz",
        "d/sub-01/anat/sub-01_run-1_run-2_T1w.nii.gz",
        "d/sub-01/anat/sub-01_acq-a.b_T1w.nii.gz",
        "d/sub-01/anat/sub-01_.nii.gz",
        "d/anat/sub-01_T1w.nii.gz",
        "d/sub-01/anat/sub-01_T1w.json",
    ],
)
def test_other_names_are_none(path: str) -> None:
    assert parse_name(Path(path)) is None
