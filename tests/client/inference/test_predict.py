from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import client.inference.scores
from client.inference.predict import PredictOptions, Predictor, predict_path
from client.inference.results import ResultForms
from common.errors import BundleError, ConfigError, DataError, OutputError
from common.imaging.datasets.comparison import SiteTerms
from common.imaging.io.nifti import read_volume
from common.imaging.preprocessing import preprocess_image, restore_prediction
from common.imaging.ranges import GeometryRanges
from common.models.bundle import load_bundle
from common.models.unet3d import build_model
from common.plan.plan import ModelPlan, Plan, PreprocessingPlan
from tests.tiny import save_bundle

OBLIQUE = np.array([[-1.2, 0.1, 0.0, 40.0], [0.12, 1.0, 0.0, -30.0], [0.0, 0.0, 1.5, 7.0], [0.0, 0.0, 0.0, 1.0]])
SHAPE = (21, 18, 11)


def make_bundle(folder: Path, spacing: tuple[float, float, float] | None = (1.5, 1.2, 1.5), channels: int = 1) -> Path:
    names = ("T1", "T2")[:channels]
    plan = Plan(
        channels=names,
        labels={1: "head", 2: "tail"},
        preprocessing=PreprocessingPlan(spacing=spacing, intensity=({},) * channels),
        model=ModelPlan(
            in_channels=channels,
            classes=3,
            channels=(4, 8),
            strides=((1, 1, 1), (2, 2, 2)),
            kernels=((3, 3, 3), (3, 3, 3)),
            blocks=(1, 1),
            decoder_blocks=1,
            groups=2,
        ),
        patch_size=(16, 16, 8),
        mirror_axes=(0,),
    )
    torch.manual_seed(3)
    save_bundle(folder, build_model(plan.model), plan, {})
    return folder


def make_scan(path: Path, seed: int = 0, affine: np.ndarray = OBLIQUE, shape: tuple[int, ...] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(1, 500, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "model")


@pytest.mark.parametrize("spacing", [None, (1.5, 1.2, 1.5)])
def test_labels_lie_on_the_scans_own_grid(tmp_path, spacing):
    model = make_bundle(tmp_path / "model", spacing)
    scan = make_scan(tmp_path / "scan.nii.gz")
    report = predict_path(Predictor.open(model), scan, tmp_path / "label.nii.gz")
    assert report.written == (tmp_path / "label.nii.gz",)
    assert report.exit_status == 0
    label = nibabel.load(tmp_path / "label.nii.gz")
    assert label.shape == SHAPE
    np.testing.assert_array_equal(label.affine, nibabel.load(scan).affine)
    assert np.issubdtype(label.get_data_dtype(), np.integer)
    values = np.asarray(label.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert len(np.unique(values)) > 1


def test_labels_are_those_of_the_whole_volume_at_once(tmp_path):
    model = make_bundle(tmp_path / "model")
    scan = make_scan(tmp_path / "scan.nii.gz", shape=(18, 17, 8))
    bundle = load_bundle(model)
    volume = read_volume(scan)
    prepared = preprocess_image(volume, bundle.plan.preprocessing)
    assert all(size <= patch for size, patch in zip(prepared.geometry.shape, bundle.plan.patch_size, strict=True))
    margins = [p - s for p, s in zip(bundle.plan.patch_size, prepared.geometry.shape, strict=True)]
    before = [margin // 2 for margin in margins]
    padded = np.pad(prepared.image, [(0, 0), *((b, m - b) for b, m in zip(before, margins, strict=True))])
    with torch.inference_mode():
        logits = bundle.build_model()(torch.from_numpy(padded)[None])[0].numpy()
    inner = [slice(b, b + s) for b, s in zip(before, prepared.geometry.shape, strict=True)]
    expected = restore_prediction(np.ascontiguousarray(logits[:, *inner]), prepared.geometry)
    result = Predictor(bundle, PredictOptions(precision="float32")).predict(volume)
    assert (result == expected).mean() > 0.999


@pytest.mark.parametrize("spacing", [None, (1.5, 1.2, 1.5)])
def test_orientation_on_disk_does_not_matter(tmp_path, spacing):
    model = make_bundle(tmp_path / "model", spacing)
    scan = nibabel.load(make_scan(tmp_path / "scans" / "a.nii.gz"))
    turned = scan.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    nibabel.save(turned, tmp_path / "scans" / "b.nii.gz")
    predict_path(Predictor.open(model, PredictOptions(precision="float32")), tmp_path / "scans", tmp_path / "out")
    first, second = (nibabel.as_closest_canonical(nibabel.load(tmp_path / "out" / f"{n}.nii.gz")) for n in "ab")
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))


@pytest.mark.parametrize("overwrite", [False, True])
def test_probabilities_never_replace_the_result_of_another_scan(model, tmp_path, overwrite):
    for name in ("a.nii.gz", "a_probabilities.nii.gz", "b.nii.gz"):
        make_scan(tmp_path / "scans" / name)
    predictor = Predictor.open(model)
    with pytest.raises(OutputError, match=r"result of both a and a_probabilities; rename one of the scans, or write"):
        predict_path(
            predictor, tmp_path / "scans", tmp_path / "out", forms=ResultForms(probabilities=True), overwrite=overwrite
        )
    assert not list(tmp_path.glob("out/*"))
    assert len(predict_path(predictor, tmp_path / "scans", tmp_path / "out").written) == 3


@pytest.mark.parametrize(
    ("channels", "terms", "order", "text"),
    [
        (("T1", "T2"), SiteTerms(), (0, 1), None),
        (("T2", "T1"), SiteTerms(), None, "channel 0 is 'T2' here, and 'T1'"),
        (("CT", "T2"), SiteTerms(), None, "channel 0 is 'CT' here, and 'T1'"),
        (("T2", "T1"), SiteTerms(channels_map={"T2": "T2", "T1": "T1"}), (1, 0), None),
        (("first", "second"), SiteTerms(channels_map={"first": "T2", "second": "T1"}), (1, 0), None),
    ],
)
def test_channels_that_a_dataset_declares_are_those_of_the_model(tmp_path, channels, terms, order, text):
    predictor = Predictor.open(make_bundle(tmp_path / "model", channels=2), PredictOptions(terms=terms))
    for channel in (0, 1):
        make_scan(tmp_path / "data" / "imagesTr" / f"a_000{channel}.nii.gz", seed=channel)
        make_scan(tmp_path / "ordered" / f"a_000{(order or (0, 1)).index(channel)}.nii.gz", seed=channel)
    label = nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), OBLIQUE)
    (tmp_path / "data" / "labelsTr").mkdir()
    label.to_filename(tmp_path / "data" / "labelsTr" / "a.nii.gz")
    names = {str(index): name for index, name in enumerate(channels)}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"channel_names": names}))
    if text is not None:
        with pytest.raises(DataError, match=text):
            predict_path(predictor, tmp_path / "data", tmp_path / "out")
        return
    predict_path(predictor, tmp_path / "data", tmp_path / "out")
    predict_path(predictor, tmp_path / "ordered", tmp_path / "expected")
    found, expected = (nibabel.load(tmp_path / name / "a.nii.gz").get_fdata() for name in ("out", "expected"))
    np.testing.assert_array_equal(found, expected)


def test_probabilities_add_up_and_leave_the_labels_as_they_are(model, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    predict_path(Predictor.open(model), scan, tmp_path / "plain")
    report = predict_path(Predictor.open(model), scan, tmp_path / "both", forms=ResultForms(probabilities=True))
    assert report.written == (tmp_path / "both" / "scan.nii.gz",)
    probabilities = nibabel.load(tmp_path / "both" / "scan_probabilities.nii.gz")
    assert probabilities.shape == (*SHAPE, 3)
    np.testing.assert_array_equal(probabilities.affine, nibabel.load(scan).affine)
    values = np.asarray(probabilities.dataobj)
    assert values.min() >= 0
    np.testing.assert_allclose(values.sum(axis=-1), 1, atol=1e-5)
    plain, both = (np.asarray(nibabel.load(tmp_path / n / "scan.nii.gz").dataobj) for n in ("plain", "both"))
    np.testing.assert_array_equal(plain, both)
    assert (values.argmax(axis=-1) == both).mean() > 0.95


def test_large_scores_go_to_a_file_that_is_gone_afterwards(model, tmp_path, monkeypatch):
    scan = make_scan(tmp_path / "scan.nii.gz")
    predict_path(Predictor.open(model), scan, tmp_path / "memory", forms=ResultForms(probabilities=True))
    monkeypatch.setattr(client.inference.scores, "SCORES_IN_MEMORY_BYTES", 100)
    predict_path(Predictor.open(model), scan, tmp_path / "disk", forms=ResultForms(probabilities=True))
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [
        "scan.nii.gz",
        "scan_probabilities.nii.gz",
    ]
    for name in ("scan.nii.gz", "scan_probabilities.nii.gz"):
        memory, disk = (np.asarray(nibabel.load(tmp_path / n / name).dataobj) for n in ("memory", "disk"))
        np.testing.assert_array_equal(memory, disk)


def test_mirroring_is_symmetric(tmp_path):
    model = make_bundle(tmp_path / "model", None)
    scan = make_scan(tmp_path / "scan.nii.gz", affine=np.eye(4), shape=(16, 16, 8))
    voxels = np.asarray(nibabel.load(scan).dataobj)
    nibabel.save(nibabel.Nifti1Image(voxels[::-1], np.eye(4)), tmp_path / "mirrored.nii.gz")
    predictor = Predictor(load_bundle(model), PredictOptions(mirror=True, precision="float32"))
    plain = Predictor(load_bundle(model), PredictOptions(precision="float32"))
    volume, mirrored = read_volume(scan), read_volume(tmp_path / "mirrored.nii.gz")
    assert (predictor.predict(volume) == predictor.predict(mirrored)[::-1]).mean() > 0.999
    assert (plain.predict(volume) == plain.predict(mirrored)[::-1]).mean() < 0.999


def test_one_unreadable_file_does_not_stop_the_others(model, tmp_path):
    for number in range(3):
        make_scan(tmp_path / "scans" / f"case{number}.nii.gz", seed=number)
    broken = tmp_path / "scans" / "case1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:300])
    report = predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out")
    assert [path.name for path in report.written] == ["case0.nii.gz", "case2.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case0.nii.gz", "case2.nii.gz"]
    assert report.exit_status == 1
    assert [failure.path for failure in report.failures] == [broken]


def impossible_scans(folder: Path) -> list[Path]:
    """One of each kind, none of which can be segmented."""
    metres = make_scan(folder / "b.nii.gz", affine=np.diag([1000.0, 1500, 2000, 1]))
    flipped = nibabel.load(make_scan(folder / "c.nii.gz"))
    flipped.set_qform(np.diag([1.2, 1, 1.5, 1]), code=1)
    flipped.set_sform(OBLIQUE, code=1)
    flipped.to_filename(folder / "c.nii.gz")
    os.mkfifo(folder / "d.nii.gz")
    return [folder / "d.nii.gz", metres, folder / "c.nii.gz"]


def test_scans_that_cannot_be_true_do_not_stop_the_others(model, tmp_path):
    scans = tmp_path / "scans"
    for name in "ae":
        make_scan(scans / f"{name}.nii.gz")
    bad = impossible_scans(scans)
    report = predict_path(Predictor.open(model), scans, tmp_path / "out")
    assert [path.name for path in report.written] == ["a.nii.gz", "e.nii.gz"]
    assert report.exit_status == 1
    assert [failure.path for failure in report.failures] == bad
    for failure, text in zip(report.failures, ["regular file", "1000 x 1500 x 2000 mm", "left and right"], strict=True):
        assert text in str(failure)
    accepted = PredictOptions(terms=SiteTerms(GeometryRanges(accept_contradictions=True)))
    assert predict_path(Predictor.open(model, accepted), scans / "c.nii.gz", tmp_path / "used").exit_status == 0


def test_a_scan_that_would_be_resampled_to_terabytes_is_refused_alone(model, tmp_path):
    make_scan(tmp_path / "scans" / "a.nii.gz")
    huge = make_scan(tmp_path / "scans" / "b.nii.gz", affine=np.diag([1000.0, 1500, 2000, 1]))
    wide = PredictOptions(terms=SiteTerms(GeometryRanges(voxel_mm=(0.05, 5000), extent_mm=1e6)))
    report = predict_path(Predictor.open(model, wide), tmp_path / "scans", tmp_path / "out")
    assert [path.name for path in report.written] == ["a.nii.gz"]
    assert [failure.path for failure in report.failures] == [huge]
    assert "to 14000 x 22500 x 14667 voxels will not fit: 18,4" in str(report.failures[0])


def test_channels_in_files_of_their_own(tmp_path):
    model = make_bundle(tmp_path / "model", channels=2)
    for channel in range(2):
        make_scan(tmp_path / "scans" / f"case_{channel:04d}.nii.gz", seed=channel)
    report = predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out")
    assert [path.name for path in report.written] == ["case.nii.gz"]


def test_a_model_for_another_number_of_channels_is_refused_with_their_names(tmp_path):
    model = make_bundle(tmp_path / "model", channels=2)
    scan = make_scan(tmp_path / "scans" / "scan.nii.gz")
    report = predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out")
    assert report.exit_status == 1
    assert report.written == ()
    assert report.failures[0].path == scan
    assert "has 1 channel; this model needs 2 (T1, T2)" in str(report.failures[0])


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_truncated_bundle_is_refused(model, tmp_path, name):
    (model / name).write_bytes((model / name).read_bytes()[:-20])
    with pytest.raises(BundleError, match=name):
        predict_path(Predictor.open(model), make_scan(tmp_path / "scan.nii.gz"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_scans_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.*holds no cases"):
        predict_path(Predictor.open(model), tmp_path / "empty", tmp_path / "out")


def test_a_missing_input_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        predict_path(Predictor.open(model), tmp_path / "nowhere", tmp_path / "out")


def test_a_result_that_exists_is_kept_unless_asked(model, tmp_path):
    make_scan(tmp_path / "scans" / "a.nii.gz")
    make_scan(tmp_path / "scans" / "b.nii.gz")
    kept = tmp_path / "out" / "b.nii.gz"
    kept.parent.mkdir()
    kept.write_text("precious")
    with pytest.raises(OutputError, match=r"b.nii.gz: exists.*--overwrite"):
        predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out")
    assert [path.name for path in kept.parent.iterdir()] == ["b.nii.gz"]
    assert kept.read_text() == "precious"
    predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out", overwrite=True)
    assert nibabel.load(kept).shape == SHAPE


def test_a_scan_is_never_overwritten(model, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    before = scan.read_bytes()
    for output in (scan, tmp_path):
        with pytest.raises(OutputError, match="one of the scans"):
            predict_path(Predictor.open(model), scan, output, overwrite=True)
    assert scan.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_before_any_work(model, tmp_path):
    scan = make_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot be written.*choose another place"):
        predict_path(Predictor.open(model), scan, tmp_path / "file" / "out")


def test_a_folder_cannot_be_predicted_into_one_file(model, tmp_path):
    make_scan(tmp_path / "scans" / "a.nii.gz")
    with pytest.raises(OutputError, match="give a folder"):
        predict_path(Predictor.open(model), tmp_path / "scans", tmp_path / "out.nii.gz")


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_overlap_out_of_range_is_refused(model, tmp_path, overlap):
    with pytest.raises(ConfigError, match="overlap"):
        predict_path(
            Predictor.open(model, PredictOptions(overlap=overlap)),
            make_scan(tmp_path / "scan.nii.gz"),
            tmp_path / "out",
        )


def test_mirroring_that_the_plan_forbids_is_refused(model):
    bundle = load_bundle(model)
    object.__setattr__(bundle, "plan", bundle.plan.model_copy(update={"mirror_axes": ()}))
    with pytest.raises(ConfigError, match="allows no mirroring"):
        Predictor(bundle, PredictOptions(mirror=True))


def test_progress_runs_from_nothing_to_all(model, tmp_path):
    for name in "ab":
        make_scan(tmp_path / "scans" / f"{name}.nii.gz")
    seen: list[tuple[float, str]] = []
    predict_path(
        Predictor.open(model),
        tmp_path / "scans",
        tmp_path / "out",
        progress=lambda fraction, name: seen.append((fraction, name)),
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert {name for _, name in seen} == {"a", "b"}


def test_real_scans_get_labels_on_their_own_grid(model, hippocampus, tmp_path):
    scan = sorted((hippocampus / "imagesTr").glob("hippocampus_*.nii.gz"))[0]
    predict_path(Predictor.open(model), scan, tmp_path)
    label = nibabel.load(tmp_path / scan.name)
    assert label.shape == nibabel.load(scan).shape
    np.testing.assert_array_equal(label.affine, nibabel.load(scan).affine)
