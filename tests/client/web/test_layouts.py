"""Checks and scans of hospitals that keep DICOM or BIDS: the same pictures and volumes as from their files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from client.consent.site_config import SITE_FILE
from client.state_folder import StateFolder
from client.web import segmenting, work
from client.web.checks import request_of
from client.web.pictures import slice_of, slice_with_most
from client.web.place import Place
from common.imaging.datasets.case import load_case
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import find_dataset
from tests import bids
from tests.client.consent.test_disclosure import write_kit
from tests.client.web.test_work import nothing, receive
from tests.common.imaging.datasets.test_dicom_labels import write_case

LABELS = {1: "Milz", 2: "Leber"}
"""Not in the order of the files, so that labels have other numbers there."""


def write_dicom(root: Path) -> tuple[dict[int, str], str]:
    for name in ("a", "bb", "c"):  # a and c have the same voxels
        write_case(root, name, "Leber", "Milz")
    return LABELS, "t1"


def write_bids(root: Path) -> tuple[dict[int, str], str]:
    subjects = ("01", "02", "03")
    labels = bids.write_derivative(bids.write_dataset(root, subjects))
    for subject in subjects:
        bids.write_scan(root, f"sub-{subject}_T1w", seed=len(subject))
        bids.write_label(labels, f"sub-{subject}_dseg")
    return {1: "posterior", 2: "anterior"}, "T1w"


@pytest.fixture(params=[write_dicom, write_bids], ids=["dicom", "bids"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    labels, channel = request.param(tmp_path / "data")
    write_kit(tmp_path / "kit", labels=labels, channels=[channel], preprocessing={"spacing": "keep"})
    StateFolder(tmp_path / "state").make()
    if channel == "T1w":
        rule = "labels_map: {anterior: anterior, posterior: posterior}\n"
        (tmp_path / "state" / SITE_FILE).write_text(rule, encoding="utf-8")
    return Place(tmp_path / "kit", tmp_path / "state", tmp_path / "ledger.jsonl", tmp_path / "data")


def test_odd_cases_are_drawn_and_segmented_on_the_grid_of_their_files(site: Place, tmp_path: Path) -> None:
    request = request_of(site) | {"folder": str(tmp_path)}
    found = work.check(request, nothing)
    pictures = {item["case"]: item for item in found["pictures"]}
    assert found["usable"] and pictures
    assert all("same voxels" in item["problem"] for item in pictures.values()), pictures
    assert site.data is not None
    labels = {int(value): name for value, name in found["labels"].items()}
    terms = SiteTerms(labels_map={name: name for name in labels.values()})
    read = {case.name: case for case in compare(find_dataset(site.data), Wanted(labels), terms)[0].cases}
    for name, item in pictures.items():
        volume, label = load_case(read[name], labels)
        assert label is not None
        drawn = (imread(tmp_path / f"{item['number']}.png")[..., :3] * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(drawn, slice_of(volume.array[0], label, slice_with_most(label > 0)))

    (name,) = work.cases(request, nothing)
    receive(site, 1)
    work.segment(request | {"case": name}, nothing)
    volume, label = load_case(read[name], labels)
    for file, expected in ((segmenting.IMAGE, volume.array[0]), (segmenting.TRUTH, label)):
        written = nib.as_closest_canonical(nib.load(tmp_path / file))
        np.testing.assert_allclose(written.affine, volume.grid.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
