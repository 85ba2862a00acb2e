from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.federation import ModelConfig
from common.errors import ConfigError, DataError
from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.case import Case
from common.imaging.datasets.dataset import find_dataset
from common.plan.plan import IntensityPlan
from common.planning.fingerprint import ChannelIntensities, Fingerprint, fingerprint_dataset
from common.planning.planner import (
    choose_patch_size,
    make_plan,
    plan_stages,
    target_spacing,
)


def write_case(root: Path, name: str, image: np.ndarray, label: np.ndarray | None, spacing=(1.0, 1.0, 1.0)) -> Case:
    root.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    image_path, label_path = root / f"{name}.nii", root / f"{name}-label.nii"
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), image_path)
    if label is not None:
        nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), affine), label_path)
    return Case(name=name, images=(image_path,), label=None if label is None else label_path)


def describe(shapes, spacings, channels=1):
    intensity = ChannelIntensities(
        mean=40.0, std=20.0, minimum=-90.0, percentile_00_5=-50.0, median=35.0, percentile_99_5=180.0, maximum=900.0
    )
    return Fingerprint(
        shapes=tuple(shapes),
        spacings=tuple(spacings),
        intensities=(intensity,) * channels,
        medians=((35.0,) * channels,) * len(shapes),
        label_volumes_ml={1: (1.0,) * len(shapes)},
    )


def target_of(spacings):
    return target_spacing(describe([(1, 1, 1)] * len(spacings), spacings))


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    """Foreground intensities of case i are 100 i + 0, 1, ..., 63; around it there is 7 and a margin of zeros."""
    made = []
    for i, spacing in enumerate([(1.0, 1.0, 2.0), (1.0, 1.0, 1.0), (0.5, 1.0, 1.0)], start=1):
        image = np.zeros((12, 11, 10 + i))
        image[1:-1, 2:-2, 3:-3] = 7
        label = np.zeros(image.shape)
        label[4:8, 4:8, 4:8] = 1
        image[label == 1] = 100 * i + np.arange(64)
        label[4, 4, 4] = 2 if i > 1 else 1
        made.append(write_case(tmp_path / "data", f"case{i}", image, label, spacing))
    return made


def test_what_is_measured(cases):
    found = fingerprint_dataset(cases, (1, 2))
    assert found.shapes == ((10, 7, 5), (10, 7, 6), (10, 7, 7))
    assert found.spacings == ((1, 1, 2), (1, 1, 1), (0.5, 1, 1))
    assert found.median_shape((1.0, 1.0, 1.0)) == (10, 7, 7)  # 5 x 2 mm, 6 and 7
    assert found.medians == ((131.5,), (231.5,), (331.5,))
    assert found.label_volumes_ml[1] == pytest.approx((0.128, 0.063, 0.0315))
    assert found.label_volumes_ml[2] == pytest.approx((0, 0.001, 0.0005))
    (intensity,) = found.intensities
    foreground = np.concatenate([100 * i + np.arange(64) for i in (1, 2, 3)])
    assert intensity.mean == pytest.approx(foreground.mean()) and intensity.std == pytest.approx(foreground.std())
    assert (intensity.minimum, intensity.maximum) == (100, 363)
    assert intensity.median == np.median(foreground)
    expected = np.percentile(foreground, (0.5, 99.5))
    assert (intensity.percentile_00_5, intensity.percentile_99_5) == pytest.approx(expected, rel=1e-6)


def test_labels_that_no_case_has_are_named(cases):
    assert fingerprint_dataset(cases, (1, 2, 3)).missing_labels == (3,)
    assert fingerprint_dataset(cases, (1, 2)).missing_labels == ()


@pytest.mark.parametrize("workers", [1, 3])
def test_measured_again_it_is_the_same(cases, tmp_path, workers):
    seen = []
    first = fingerprint_dataset(cases, (1, 2), workers, lambda *done: seen.append(done), tmp_path / "cache")
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert fingerprint_dataset(cases, (1, 2), workers, folder=tmp_path / "cache") == first
    assert fingerprint_dataset(cases, (1, 2)) == first
    assert Fingerprint.model_validate_json(first.model_dump_json()) == first


def test_a_changed_case_is_measured_again(cases, tmp_path):
    first = fingerprint_dataset(cases, (1, 2), folder=tmp_path / "cache")
    image = nibabel.load(cases[0].images[0])
    brighter = np.asarray(image.dataobj) * 2
    nibabel.save(nibabel.Nifti1Image(brighter, image.affine), cases[0].images[0])
    second = fingerprint_dataset(cases, (1, 2), folder=tmp_path / "cache")
    assert second.intensities[0].mean > first.intensities[0].mean
    assert second == fingerprint_dataset(cases, (1, 2))


def test_cases_without_label_map_count_for_shapes_only(cases, tmp_path):
    extra = write_case(tmp_path / "data", "extra", np.random.default_rng(0).normal(size=(20, 20, 20)), None)
    found, before = fingerprint_dataset([*cases, extra], (1, 2)), fingerprint_dataset(cases, (1, 2))
    assert found.shapes[3] == (20, 20, 20) and found.label_volumes_ml[1][3] == 0
    assert found.intensities == before.intensities


def test_what_cannot_be_measured_is_refused(cases, tmp_path):
    noise = np.random.default_rng(0).normal(size=(6, 6, 6, 2))
    two = write_case(tmp_path / "data", "two", noise, np.ones((6, 6, 6)))
    with pytest.raises(DataError, match=r"two\.nii: has 2 channels, case1\.nii has 1"):
        fingerprint_dataset([*cases, two], (1, 2))
    empty = write_case(tmp_path / "data", "empty", noise[..., 0], np.zeros((6, 6, 6)))
    with pytest.raises(DataError, match="no case has any voxel"):
        fingerprint_dataset([empty], (1, 2))
    with pytest.raises(ValueError, match="at least one case"):
        fingerprint_dataset([], (1, 2))


def test_target_spacing_is_the_median():
    assert target_of([(1.0, 1.0, 1.0), (0.5, 2.0, 1.5), (2.0, 1.5, 2.5)]) == (1.0, 1.5, 1.5)


def test_a_thick_axis_takes_its_tenth_percentile():
    spacings = [(0.5, 0.5, z) for z in (1.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 6.0)]
    assert target_of(spacings) == (0.5, 0.5, 2.0)
    # Never finer than the other axes.
    finer = [(0.5, 0.5, z) for z in (0.1, 0.1, 5.0, 5.0, 5.0)]
    assert target_of(finer) == (0.5, 0.5, 0.5)
    # Three times is not thick.
    assert target_of([(0.5, 0.5, z) for z in (0.5, 1.5, 1.5)]) == (0.5, 0.5, 1.5)


def test_stages_of_cubic_voxels():
    strides, kernels = plan_stages((40, 56, 40), (1.0, 1.0, 1.0), 4)
    assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert kernels == ((3, 3, 3),) * 4


def test_a_thick_axis_waits_until_the_others_caught_up():
    strides, kernels = plan_stages((128, 128, 32), (0.5, 0.5, 3.0), 5)
    assert kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))  # spacings 6, 3, 1.5 times the finest
    assert strides == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))


def test_no_axis_is_sampled_below_four_voxels():
    strides, _ = plan_stages((64, 15, 7), (1.0, 1.0, 1.0), 4)
    assert strides == ((1, 1, 1), (2, 2, 1), (2, 1, 1), (2, 1, 1))


def test_patch_holds_the_median_volume_or_is_capped_about_cubic():
    assert choose_patch_size((36, 50, 35), (1.0, 1.0, 1.0), 4, 96**3) == (40, 56, 40)
    assert choose_patch_size((512, 512, 300), (1.0, 1.0, 1.0), 5, 96**3) == (96, 96, 96)
    x, y, z = choose_patch_size((512, 512, 100), (0.5, 0.5, 2.0), 5, 64**3)
    assert x * y * z <= 64**3 and x * 0.5 == pytest.approx(z * 2.0, rel=0.35)


@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    stages=st.integers(2, 6),
)
@settings(max_examples=40, deadline=None)
def test_every_dataset_gets_a_plan_that_fits_its_network(shape, spacing, stages):
    network = ModelConfig(channels=(8,) * stages)
    plan = make_plan(describe([shape], [spacing]), ["MRI"], {1: "a"}, network=network, largest_patch=64**3)
    assert np.prod(plan.patch_size) <= 64**3
    assert all(size % divisor == 0 for size, divisor in zip(plan.patch_size, plan.model.divisors, strict=True))


def test_ct_uses_the_window_of_the_whole_dataset_and_mr_each_volumes_own():
    described = describe([(40, 40, 40)], [(1.0, 1.0, 1.0)], channels=2)
    plan = make_plan(described, ["a", "b"], {1: "liver"}, "CT")
    expected = IntensityPlan(clip="window", lower=-50, upper=180, normalise="given", mean=40, std=20)
    assert plan.preprocessing.intensity == (expected, expected)
    assert plan.model.in_channels == 2 and plan.model.classes == 2
    assert make_plan(described, ["a", "b"], {1: "liver"}, "MR").preprocessing.intensity == (IntensityPlan(),) * 2


def test_what_is_given_is_taken():
    plan = make_plan(
        describe([(40, 40, 40)], [(1.0, 1.0, 1.0)]),
        ["MRI"],
        {1: "a", 2: "b"},
        network=ModelConfig(
            channels=(8, 16),
            patch_size=(16, 32, 16),
            strides=((1, 1, 1), (2, 2, 1)),
            kernels=((1, 3, 3), (3, 3, 3)),
            blocks=(1, 3),
            decoder_blocks=1,
            residual=True,
            deep_supervision=True,
            groups=4,
            mirror_axes=(0,),
        ),
        spacing=(2.0, 1.0, 1.0),
    )
    assert plan.preprocessing.spacing == (2, 1, 1) and plan.patch_size == (16, 32, 16) and plan.mirror_axes == (0,)
    assert plan.model.channels == (8, 16) and plan.model.blocks == (1, 3) and plan.model.groups == 4
    assert plan.model.residual and plan.model.deep_supervision and plan.model.decoder_blocks == 1
    assert plan.model.strides == ((1, 1, 1), (2, 2, 1)) and plan.model.kernels == ((1, 3, 3), (3, 3, 3))


def test_what_does_not_fit_is_refused_with_a_way_out():
    described = describe([(40, 40, 40)], [(1.0, 1.0, 1.0)])
    with pytest.raises(ConfigError, match=r"patch_size: \(50, 48, 48\) does not fit 4 stages; take \(56, 48, 48\)"):
        make_plan(described, ["MRI"], {1: "a"}, network=ModelConfig(patch_size=(50, 48, 48)))
    with pytest.raises(ConfigError, match=r"2 names .*1 channel:"):
        make_plan(described, ["T1", "T2"], {1: "a"})
    with pytest.raises(ConfigError, match=r"^model: strides has 2 entries, channels has 4$"):
        make_plan(described, ["T1"], {1: "a"}, network=ModelConfig(strides=((1, 1, 1), (2, 2, 2))))
    with pytest.raises(ConfigError, match=r"^model: groups \(7\) does not divide 16 channels$"):
        make_plan(described, ["T1"], {1: "a"}, network=ModelConfig(groups=7))


def test_real_data_get_the_published_patch_and_fit_their_plan(hippocampus):
    dataset = find_dataset(hippocampus)
    cases = dataset.cases[::20]
    plan = make_plan(fingerprint_dataset(cases, dataset.labels, 2), dataset.channels, dataset.labels)
    assert plan.patch_size == (40, 56, 40) and plan.preprocessing.spacing == (1, 1, 1)
    cached = CaseCache(None, plan.preprocessing, plan.labels).get(cases[0])
    assert cached.image.mean() == pytest.approx(0, abs=1e-4) and cached.image.std() == pytest.approx(1, abs=1e-4)
