"""Categories, colours and coding schemes of structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.inference.dicom.wording import category_of, colour_of, concept_of
from common.imaging.io.dicom.volume import read_series
from common.plan.base import Code
from tests.client.inference.dicom.by_hand import errors_of_dciodvfy, made_up, model, write
from tests.dicom_series import make_series, only_series_in, save


@pytest.mark.parametrize(
    ("scheme", "value", "category"),
    [
        ("SCT", "10200004", "Anatomical Structure"),  # liver
        ("SCT", "29092000", "Anatomical Structure"),  # vein, a tissue too
        ("SCT", "3138006", "Tissue"),  # bone
        ("SCT", "85756007", "Tissue"),
        ("SCT", "108369006", "Morphologically Abnormal Structure"),  # neoplasm
        ("SCT", "50960005", "Morphologically Abnormal Structure"),  # haemorrhage
        ("SCT", "55641003", "Morphologically Abnormal Structure"),  # infarct
        ("SCT", "86049000", "Morphologically Abnormal Structure"),  # malignant neoplasm, primary
        ("SCT", "128462008", "Morphologically Abnormal Structure"),  # metastasis
        ("SCT", "40388003", "Physical object"),  # implant
        ("SCT", "65818007", "Physical object"),  # stent
        ("SCT", "78014005", "Body Substance"),  # urine
        ("SCT", "7140000", "Substance"),  # contrast agent
        ("SCT", "371863001", "Function"),  # perfusion
        ("SCT", "17621005", "Spatial and Relational Concept"),  # normal
        ("DCM", "125040", "Spatial and Relational Concept"),  # background
        ("99OWN", "10200004", "Anatomical Structure"),
        ("99OWN", "108369006", "Anatomical Structure"),
    ],
)
def test_the_category_is_that_under_which_the_standard_lists_a_code(scheme: str, value: str, category: str) -> None:
    code = Code(scheme=scheme, value=value, meaning="any words")
    assert category_of(concept_of(model(codes={1: code}), 1)).meaning == category


def test_names_that_differ_in_a_backslash_have_codes_of_their_own() -> None:
    applied = model({1: "a/b", 2: "a\\b", 3: "c\\d"})
    assert [concept_of(applied, label).value for label in (1, 2, 3)] == ["a/b (1)", "a/b (2)", "c/d"]
    assert concept_of(applied, 2).meaning == "a/b"


def test_colours_differ_and_stay() -> None:
    colours = np.array([colour_of(label).to_rgb(clip=True) for label in range(1, 25)], dtype=float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(len(colours))
    assert apart.min() > 25
    assert min(apart[label, label + 1] for label in range(len(colours) - 1)) > 120


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_segments_have_colours_and_private_schemes_are_named(tmp_path: Path, kind: str) -> None:
    series = only_series_in(save(tmp_path / "series", make_series()))
    codes = {1: Code(scheme="99KLINIK", value="7", meaning="Kopf"), 2: Code(scheme="SCT", value="1", meaning="x")}
    applied = model({1: "head", 2: "tail", 3: "rest"}, codes)
    objects = write(tmp_path, series, made_up(read_series(series).grid, labels=3), kind, applied)
    for one in objects:
        schemes = {item.CodingSchemeDesignator for item in one.CodingSchemeIdentificationSequence}
        assert {"99KLINIK", "99FEDVOX"} <= schemes
    found = [tuple(one.RecommendedDisplayCIELabValue) for one in objects[0].SegmentSequence]
    assert found == [colour_of(label).value for label in (1, 2, 3)]
    assert not errors_of_dciodvfy(tmp_path / "seg.dcm") and not errors_of_dciodvfy(tmp_path / "sr.dcm")
