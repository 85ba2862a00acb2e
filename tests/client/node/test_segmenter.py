"""Segmenter: chosen series become DICOM results, and each other series has its reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from client.inference.predict import Predictor
from client.node.config import Node, NodeConfig
from client.node.folders import SEGMENTER_FILE, SEGMENTING_FILE, read_note, write_note
from client.node.segmenter import Segmenter, main
from client.node.studies import SeriesOutcome
from tests.dicom_series import CT, make_series, save
from tests.listening import write_model

CALLERS = [{"ae_title": "MODALITY", "addresses": ["127.0.0.1"]}]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.open(write_model(tmp_path_factory.mktemp("model")))


def study(*series: Sequence[Dataset]) -> list[Dataset]:
    """Series of one study, numbered from 1."""
    together = [one for group in series for one in group]
    for number, group in enumerate(series, 1):
        for one in group:
            one.SeriesNumber, one.StudyInstanceUID = number, together[0].StudyInstanceUID
    return together


def cube(**values: object) -> list[Dataset]:
    voxels = np.random.default_rng(0).integers(0, 1000, (6, 16, 16)).astype(np.uint16)
    return make_series(voxels, axes=np.eye(3), **values)


def segment(predictor: Predictor, folder: Path, slices: list[Dataset], **values: object) -> list[SeriesOutcome]:
    content = {"ae_title": "FEDVOX", "callers": CALLERS, "shadow": True, **values}
    (folder / "results").mkdir()
    node = Node(NodeConfig.model_validate(content), folder)
    predictor.terms = node.data_terms
    segmenter = Segmenter(node.config.results, predictor)
    return segmenter(kept(folder / "instances", slices), folder / "results")


def kept(folder: Path, slices: list[Dataset]) -> Path:
    """Instances on disk as a node keeps them."""
    for path in save(folder, slices).iterdir():
        path.rename(folder / f"{pydicom.dcmread(path).SOPInstanceUID}.dcm")
    return folder


def test_results_are_named_by_their_uids_and_the_same_each_time(predictor: Predictor, tmp_path: Path) -> None:
    series = cube()
    names = []
    for time in ("first", "second"):
        (tmp_path / time).mkdir()
        (outcome,) = segment(predictor, tmp_path / time, series)
        assert outcome.state == "segmented"
        results = {path.stem: pydicom.dcmread(path) for path in (tmp_path / time / "results").iterdir()}
        assert all(uid == one.SOPInstanceUID for uid, one in results.items())
        assert sorted(one.Modality for one in results.values()) == ["SEG", "SR"]
        names.append(set(results))
    assert names[0] == names[1]


def test_an_outcome_says_what_results_lack(predictor: Predictor, tmp_path: Path) -> None:
    (outcome,) = segment(predictor, tmp_path, cube(StudyTime="99"))
    assert outcome.state == "segmented"
    assert outcome.reason.startswith(f"{outcome.title}: results are without StudyTime")


def test_only_chosen_series_are_segmented(predictor: Predictor, tmp_path: Path) -> None:
    series = study(
        cube(SeriesDescription="T1 post", BodyPartExamined="KNEE"),
        cube(SeriesDescription="T1 post", BodyPartExamined="HEAD"),
        cube(SeriesDescription="scout", BodyPartExamined="KNEE"),
        cube(SeriesDescription="T1 post", BodyPartExamined="KNEE", kind=CT),
        cube(SeriesDescription="t1 POST again", BodyPartExamined="knee")[:5],
    )
    rules = {"min_slices": 6, "series": {"modality": "MR", "description": "T1 post*", "body_part": "KNEE"}}
    outcomes = segment(predictor, tmp_path, series, dicom=rules, results={"report": False})
    assert [one.state for one in outcomes] == ["segmented", *["left out"] * 4]
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_series_that_was_chosen_and_cannot_be_read_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    gap = cube()
    series = study(cube(), gap[:2] + gap[3:], cube()[:2])
    outcomes = segment(predictor, tmp_path, series)
    assert [one.state for one in outcomes] == ["segmented", "refused", "left out"]
    assert "lacks 1 slice" in outcomes[1].reason and "fewer than 5" in outcomes[2].reason


def test_a_series_that_cannot_be_read_and_is_not_chosen_is_no_fault(predictor: Predictor, tmp_path: Path) -> None:
    gap = cube(SeriesDescription="scout")
    (outcome,) = segment(predictor, tmp_path, gap[:2] + gap[3:], dicom={"series": {"description": "T1"}})
    assert outcome.state == "left out"


@pytest.mark.parametrize("content", [b"", b"\0" * 3000, None], ids=["empty", "zeroed", "another instance"])
def test_an_instance_that_went_bad_on_disk_does_not_shorten_a_series(
    predictor: Predictor, tmp_path: Path, content: bytes | None
) -> None:
    series = cube()
    node = Node(NodeConfig.model_validate({"ae_title": "FEDVOX", "callers": CALLERS, "shadow": True}), tmp_path)
    predictor.terms = node.data_terms
    instances = kept(tmp_path / "instances", series)
    first, last = (instances / f"{one.SOPInstanceUID}.dcm" for one in (series[0], series[-1]))
    last.write_bytes(first.read_bytes() if content is None else content)
    (tmp_path / "results").mkdir()
    (outcome,) = Segmenter(node.config.results, predictor)(instances, tmp_path / "results")
    assert outcome.state == "refused" and "1 instance cannot be read any more" in outcome.reason
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize("told", [None, {"inference": {}, "of another version": 1}])
def test_what_it_is_told_must_be_of_its_version(tmp_path: Path, told: dict[str, object] | None) -> None:
    if told is not None:
        write_note(tmp_path / SEGMENTING_FILE, told)
    assert main(tmp_path, tmp_path / "model") == 2
    assert "start the node again" in read_note(tmp_path / SEGMENTER_FILE)["problem"]


def test_texts_of_a_study_are_shown_cut_and_results_keep_its_names(predictor: Predictor, tmp_path: Path) -> None:
    texts = {"PatientName": "Müller^Jörg", "PatientID": "../../P1", "StudyID": "../1"}
    series = cube(SpecificCharacterSet="ISO_IR 192", SeriesDescription="../../escaped\x1b[2J\n" * 300, **texts)
    (outcome,) = segment(predictor, tmp_path, series)
    assert outcome.state == "segmented" and outcome.title.isprintable() and len(outcome.title) < 200
    results = {path.name: pydicom.dcmread(path) for path in (tmp_path / "results").iterdir()}
    assert {name.removesuffix(".dcm") for name in results} == {one.SOPInstanceUID for one in results.values()}
    assert {(str(one.PatientName), one.PatientID, one.StudyID) for one in results.values()} == {tuple(texts.values())}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["instances", "results"]
