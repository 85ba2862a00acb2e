import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from common.imaging.patches.augmentation import apply_gamma, augment, blur, draw_transform, flip, lower_resolution
from common.imaging.patches.cropping import cut, cut_transformed
from common.plan.augmentation import AugmentationPlan

NOTHING = dict.fromkeys(("mirror", "rotation", "scaling", "gamma", "noise", "blur", "low_resolution"), 0.0)


@pytest.fixture(autouse=True)
def one_core():
    """Threads that wait for each other on a busy machine cost far more than these small patches."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan_of(**settings):
    return AugmentationPlan(**{**NOTHING, **settings})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(shape=(40, 44, 36)):
    """An image in which each label has its own intensity, so that misplaced labels show."""
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    label = ((x - 16) ** 2 + (y - 24) ** 2 + (z - 17) ** 2 < 90).astype(np.uint8)
    label[(x - 25) ** 2 + (y - 17) ** 2 + (z - 20) ** 2 < 40] = 2
    return (label * 10.0)[None].astype(np.float32), label


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("start", [(0, 0, 0), (-3, 2, 5), (7, -9, 30), (50, 0, 0), (-40, 0, 0)])
def test_cut_is_zero_outside(start):
    image = noise((2, 12, 10, 40))
    padded = np.pad(image, ((0, 0), *[(60, 60)] * 3))
    expected = padded[(slice(None), *(slice(60 + s, 60 + s + n) for s, n in zip(start, (9, 16, 8), strict=True)))]
    np.testing.assert_array_equal(cut(image, start, (9, 16, 8)), expected)


@pytest.mark.parametrize("start", [(2, 3, 4), (-5, 2, 20), (60, 0, 0)])
def test_the_identity_cuts_the_straight_patch(start):
    image, label = noise((2, 30, 26, 24)), np.random.default_rng(1).integers(0, 4, (30, 26, 24)).astype(np.uint8)
    size = (16, 20, 12)
    turned, turned_label = cut_transformed(image, label, start, size, np.eye(3))
    np.testing.assert_allclose(turned.numpy(), cut(image, start, size), atol=1e-4)
    np.testing.assert_array_equal(turned_label.numpy(), cut(label, start, size))


def test_transforms_agree_with_scipy():
    image, label = scene()
    image = image + ndimage.gaussian_filter(noise(label.shape), 2)
    start, size = (10, 8, 6), (20, 24, 22)
    angle = np.deg2rad(25)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = turn @ np.diag([0.7, 0.9, 1.1])
    half = (np.array(size) - 1) / 2
    offset = np.array(start) + half - matrix @ half
    values, labels = cut_transformed(image, label, start, size, matrix)
    expected = ndimage.affine_transform(image[0], matrix, offset, size, order=1, mode="grid-constant")
    np.testing.assert_allclose(values[0].numpy(), expected, atol=1e-3)
    expected_label = ndimage.affine_transform(label, matrix, offset, size, order=0, mode="grid-constant")
    assert (labels.numpy() != expected_label).mean() < 1e-3  # a voxel centre may lie exactly between two


@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_move_together(seed):
    image, label = scene()
    plan = plan_of(rotation=1, scaling=1, mirror=1, rotation_degrees=40.0)
    generator = seeded(seed)
    patch, patch_label = augment(image, label, plan, generator, (32, 32, 32))
    patch, patch_label = flip(patch, patch_label, (0, 2), plan.mirror, generator)
    found = patch[0].numpy() / 10
    truth = patch_label.numpy()
    inside = ndimage.minimum_filter(truth, 3) == ndimage.maximum_filter(truth, 3)
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    np.testing.assert_allclose(found[inside], truth[inside], atol=0.02)
    assert set(np.unique(patch_label)) == {0, 1, 2}


def test_nothing_happens_when_nothing_may():
    image, label = scene()
    patch, patch_label = augment(image, label, plan_of(), seeded(), (20, 20, 20), start=(4, 5, 6))
    patch, patch_label = flip(patch, patch_label, (0, 1, 2), 0.0, seeded())
    np.testing.assert_array_equal(patch.numpy(), image[:, 4:24, 5:25, 6:26])
    np.testing.assert_array_equal(patch_label.numpy(), label[4:24, 5:25, 6:26])
    assert patch.dtype == torch.float32 and patch_label.dtype == torch.uint8


def test_mirrors_only_where_the_anatomy_allows():
    image, label = scene()
    given = torch.from_numpy(image), torch.from_numpy(label)
    patch, patch_label = flip(*given, (0,), 1.0, seeded())
    np.testing.assert_array_equal(patch.numpy(), image[:, ::-1])
    np.testing.assert_array_equal(patch_label.numpy(), label[::-1])
    patch, _ = flip(*given, (), 1.0, seeded())
    np.testing.assert_array_equal(patch.numpy(), image)


def test_the_same_generator_gives_the_same_patch_and_the_input_stays():
    image, label = scene()
    image = image + noise(image.shape)
    before = image.copy(), label.copy()
    everything = AugmentationPlan(rotation=1, scaling=1, gamma=1, noise=1, blur=1, low_resolution=1)
    first, again, other = (
        flip(*augment(image, label, everything, g, (24, 24, 24)), (0,), 0.5, g) for g in map(seeded, (3, 3, 4))
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])
    assert torch.isfinite(first[0]).all()


def test_scale_above_one_is_larger():
    image, label = scene()
    sizes = []
    for scale in (0.8, 1.0, 1.25):
        _, patch_label = augment(image, label, plan_of(scaling=1, scale=(scale, scale)), seeded(), (40, 44, 36))
        sizes.append(int((patch_label > 0).sum()))
    assert sizes[0] / sizes[1] == pytest.approx(0.8**3, rel=0.1)
    assert sizes[2] / sizes[1] == pytest.approx(1.25**3, rel=0.1)


def test_rotations_keep_lengths_in_mm():
    spacing = (0.8, 1.0, 2.2)
    matrix = draw_transform(plan_of(rotation=1, rotation_degrees=40.0), spacing, seeded(1))
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(in_mm) == pytest.approx(1) and abs(in_mm - np.eye(3)).max() > 0.1


def test_thick_slices_are_turned_and_scaled_only_within_themselves():
    plan = plan_of(rotation=1, scaling=1, rotation_degrees=40.0, scale=(1.2, 1.2))
    matrix = draw_transform(plan, (1.0, 1.0, 5.0), seeded(2))
    np.testing.assert_allclose(matrix[2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(matrix[:, 2], [0, 0, 1], atol=1e-12)
    assert abs(matrix[0, 1]) > 0.01 and np.linalg.det(matrix) == pytest.approx(1.2**-2)


def test_how_often_things_happen():
    generator = seeded()
    plan = plan_of(rotation=0.3)
    happened = sum(draw_transform(plan, (1.0, 1.0, 1.0), generator) is not None for _ in range(1000))
    assert 250 < happened < 350


def test_gamma_keeps_range_and_order():
    patch = torch.from_numpy(noise((2, 8, 9, 10)) * torch.tensor([1.0, 30.0]).numpy()[:, None, None, None])
    result = apply_gamma(patch, 1.7)
    for before, after in zip(patch, result, strict=True):
        assert (after.flatten()[before.flatten().argsort()].diff() >= 0).all()
        middle = (before - before.min()) / (before.max() - before.min())
        expected = middle**1.7 * (before.max() - before.min()) + before.min()
        assert expected.min() == before.min() and expected.max() == before.max()
        torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(apply_gamma(torch.full((1, 3, 3, 3), 2.0), 0.7)).all()


def test_blur_agrees_with_scipy_away_from_the_border():
    patch = noise((2, 30, 28, 26))
    result = blur(torch.from_numpy(patch), (1.0, 0.5, 1.5)).numpy()
    expected = ndimage.gaussian_filter(patch, (0, 1.0, 0.5, 1.5), truncate=8)
    inner = np.s_[:, 8:-8, 8:-8, 8:-8]
    np.testing.assert_allclose(result[inner], expected[inner], atol=1e-4)
    np.testing.assert_allclose(blur(torch.ones(1, 9, 9, 9), (2.0, 2.0, 2.0)).numpy(), 1, atol=1e-5)


def test_low_resolution_loses_detail_but_not_place():
    x = np.linspace(-1, 1, 40, dtype=np.float32)
    ramp = torch.from_numpy(np.ascontiguousarray(np.broadcast_to(x[:, None, None], (40, 40, 40)))[None])
    assert (lower_resolution(ramp, 0.5) - ramp).abs()[:, 2:-2].max() < 0.06
    patch = torch.from_numpy(noise((1, 40, 40, 40)))
    assert lower_resolution(patch, 0.5).std() < 0.8 * patch.std()
    assert torch.equal(lower_resolution(patch, 1.0), patch)
    spared = lower_resolution(patch, 0.25, spared_axes=(0, 1, 2))
    torch.testing.assert_close(spared, patch)


@pytest.mark.parametrize(
    "settings",
    [{"mirror": 1.5}, {"noise_std": (0.3, 0.1)}, {"scale": (0.0, 1.0)}, {"rotation_degrees": -3.0}, {"shear": 0.1}],
)
def test_impossible_plans_are_refused(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        AugmentationPlan(**settings)
