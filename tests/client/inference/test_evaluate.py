from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.inference.evaluate import _to_csv, evaluate_dataset, summarise
from client.inference.predict import PredictOptions, Predictor, predict_path
from common.errors import ConfigError, DataError, OutputError
from common.imaging.datasets.comparison import SiteTerms
from common.imaging.io.nifti import read_label
from common.metrics import case_metrics
from tests.client.inference.test_predict import SHAPE, impossible_scans, make_bundle, make_scan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number in range(3):
        scan = make_scan(root / "images" / f"case{number}.nii.gz", seed=number)
        label = np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8)
        (root / "labels").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(label, nibabel.load(scan).affine), root / "labels" / f"case{number}.nii.gz")
    return root


def test_rows_are_the_metrics_of_predicted_files_on_the_scans_own_grid(model, data, tmp_path):
    report = evaluate_dataset(Predictor.open(model), data, tmp_path / "deep" / "metrics.csv")
    assert report.exit_status == 0
    predict_path(Predictor.open(model), data / "images", tmp_path / "out")
    with (tmp_path / "deep" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"], row["label_name"]) for row in rows] == [
        (f"case{number}", str(label), name) for number in range(3) for label, name in ((1, "head"), (2, "tail"))
    ]
    for row in rows:
        truth, grid = read_label(data / "labels" / f"{row['case']}.nii.gz")
        prediction, _ = read_label(tmp_path / "out" / f"{row['case']}.nii.gz")
        expected = case_metrics(prediction, truth, [1, 2], grid.spacing)[int(row["label"])]
        assert list(row) == ["case", "label", "label_name", *expected]
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5)


def test_a_perfect_model_scores_one(model, data, tmp_path):
    predict_path(Predictor.open(model), data / "images", tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.replace(data / "labels" / path.name)
    report = evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    assert {labels[label]["dice"] for labels in report.metrics.values() for label in (1, 2)} == {1.0}
    assert {labels[label]["hd95_mm"] for labels in report.metrics.values() for label in (1, 2)} == {0.0}


def test_summary_has_mean_median_and_sample_deviation_by_label():
    dice = [0.5, 0.9, 0.7, 0.4]
    metrics = {f"case{i}": {1: {"dice": value}, 2: {"dice": 1.0}} for i, value in enumerate(dice)}
    lines = [line.split() for line in summarise(metrics, {1: "head", 2: "tail"}).splitlines()]
    assert lines[0] == ["label", "metric", "mean", "median", "sd", "cases"]
    assert lines[1] == ["1", "head", "dice", "0.6250", "0.6000", f"{np.std(dice, ddof=1):.4f}", "4/4"]
    assert lines[2] == ["2", "tail", "dice", "1.0000", "1.0000", "0.0000", "4/4"]


def test_summary_says_how_many_values_were_left_out():
    values = [2.0, math.nan, math.inf, 4.0]
    metrics = {f"case{i}": {1: {"hd95_mm": value}} for i, value in enumerate(values)}
    assert summarise(metrics, {1: "head"}).splitlines()[1].split()[2:] == [
        "hd95_mm",
        "3.0000",
        "3.0000",
        "1.4142",
        "2/4",
    ]
    nothing = {"case": {1: {"hd95_mm": math.nan}}}
    assert summarise(nothing, {1: "head"}).splitlines()[1].split()[2:] == ["hd95_mm", "-", "-", "-", "0/1"]


def test_undefined_values_are_empty_cells(model, data, tmp_path):
    for path in (data / "labels").iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), image.affine), path)
    evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["sensitivity"] for row in rows} == {""}


def test_a_value_that_does_not_exist_is_told_in_one_way(tmp_path):
    """Not defined and infinite alike: an empty cell, left out of the table, and the table says so."""
    metrics = {f"case{i}": {1: {"hd95_mm": value}} for i, value in enumerate([2.0, math.nan, math.inf, -math.inf])}
    assert [line.split(",")[3] for line in _to_csv(metrics, {1: "head"}).splitlines()] == ["hd95_mm", "2", "", "", ""]
    summary = summarise(metrics, {1: "head"})
    assert "1/4" in summary and "are empty cells in the file" in " ".join(summary.split())


def test_one_unreadable_file_does_not_stop_the_others(model, data, tmp_path):
    broken = data / "labels" / "case1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    report = evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    assert list(report.metrics) == ["case0", "case2"]
    assert report.exit_status == 1
    assert [failure.path for failure in report.failures] == [broken]


def test_scans_that_cannot_be_true_do_not_stop_the_others(model, data, tmp_path):
    bad = impossible_scans(data / "images")
    for path in bad[1:]:
        image = nibabel.load(path)
        nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), None, image.header).to_filename(data / "labels" / path.name)
    report = evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    assert list(report.metrics) == ["case0", "case1", "case2"]
    assert (report.exit_status, [failure.path for failure in report.failures]) == (1, bad)


def test_nothing_is_written_when_no_case_can_be_read(model, data, tmp_path):
    for path in (data / "images").iterdir():
        path.write_bytes(b"no scan")
    with pytest.raises(DataError, match="case0"):
        evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    assert not (tmp_path / "metrics.csv").exists()


def test_a_folder_without_label_maps_is_refused(model, data, tmp_path):
    with pytest.raises(DataError, match="no label maps"):
        evaluate_dataset(Predictor.open(model), data / "images", tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"1": "liver"}, "declares the labels 1 liver, the model predicts 1 head, 2 tail"),
        ({"1": "tail", "2": "head"}, "label 1 is 'tail' here, and 'head' in the federation"),
        ({"1": "head"}, "declares the labels 1 head, the model predicts 1 head, 2 tail"),
    ],
)
def test_labels_of_another_task_are_refused(model, data, tmp_path, labels, text):
    (data / "dataset.json").write_text(json.dumps({"labels": {"0": "background"} | labels}))
    with pytest.raises((DataError, ConfigError), match=text):
        evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")


def test_other_names_of_labels_are_told(model, data, tmp_path):
    (data / "dataset.json").write_text('{"labels": {"1": "Kopf", "2": "tail"}}')
    report = evaluate_dataset(Predictor.open(model), data, tmp_path / "metrics.csv")
    assert report.exit_status == 0
    assert [text.split(": ", 1)[1] for text in report.warnings] == [
        "label 1 is 'Kopf' here, and 'head' in the federation: are they the same? If not, map them by name: "
        "labels_map in site.yaml"
    ]


def test_labels_that_the_hospital_maps_are_compared_by_name(model, data, tmp_path):
    plain = evaluate_dataset(Predictor.open(model), data, tmp_path / "plain.csv")
    (data / "dataset.json").write_text('{"labels": {"1": "Schwanz", "2": "head"}}')
    for path in (data / "labels").iterdir():
        image = nibabel.load(path)
        other = np.array([0, 2, 1], np.uint8)[np.asarray(image.dataobj)]
        nibabel.save(nibabel.Nifti1Image(other, image.affine), path)
    mapped = PredictOptions(terms=SiteTerms(labels_map={"Schwanz": "tail", "head": "head"}))
    report = evaluate_dataset(Predictor.open(model, mapped), data, tmp_path / "mapped.csv")
    assert report.metrics == plain.metrics


def test_a_file_that_exists_is_kept_unless_asked(model, data, tmp_path):
    out = tmp_path / "metrics.csv"
    out.write_text("precious")
    with pytest.raises(OutputError, match=r"exists.*--overwrite"):
        evaluate_dataset(Predictor.open(model), data, out)
    assert out.read_text() == "precious"
    evaluate_dataset(Predictor.open(model), data, out, overwrite=True)
    assert out.read_text().startswith("case,label,label_name,dice")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(model, data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        evaluate_dataset(Predictor.open(model), data, tmp_path / "file" / "metrics.csv")
    with pytest.raises(OutputError, match="is a folder"):
        evaluate_dataset(Predictor.open(model), data, tmp_path)
