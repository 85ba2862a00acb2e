import gc
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from common.imaging.cache.case_cache import CachedCase
from common.imaging.patches.sampler import PatchSampler, prefetch
from common.plan.augmentation import AugmentationPlan

EVERYTHING = AugmentationPlan(
    rotation=1, scaling=1, scale=(1.4, 1.6), rotation_degrees=60.0, gamma=1, noise=1, blur=1, low_resolution=1
)


@pytest.fixture(autouse=True)
def one_core():
    """Threads that wait for each other on a busy machine cost far more than these small patches."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(name="a", shape=(30, 34, 28), places=((3, 4, 5),), spacing=(1.0, 1.0, 1.0), seed=0) -> CachedCase:
    """Label k + 1 is a single voxel at ``places[k]``; the image is positive everywhere."""
    image = np.random.default_rng(seed).uniform(1, 2, size=(1, *shape)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    foreground = {}
    for value, place in enumerate(places, start=1):
        if place is not None:
            label[place] = value
        foreground[value] = np.argwhere(label == value).astype(np.int32)
    return CachedCase(name, image, label, spacing, foreground)


def sampler_of(cases, patch_size=(8, 8, 8), batch_size=2, fraction=0.5, augmentation=None, mirror_axes=(), seed=0):
    return PatchSampler(cases, patch_size, batch_size, fraction, augmentation, mirror_axes, seed)


def assert_equal(one, other):
    assert torch.equal(one.image, other.image) and torch.equal(one.label, other.label) and one.cases == other.cases


def test_shapes_and_types():
    batch = sampler_of([make_case()], (8, 16, 12), 3, augmentation=EVERYTHING).batch(5)
    assert batch.image.shape == (3, 1, 8, 16, 12) and batch.image.dtype == torch.float32
    assert batch.label.shape == (3, 8, 16, 12) and batch.label.dtype == torch.uint8
    assert batch.cases == ("a", "a", "a")


def test_a_batch_depends_on_seed_and_step_alone():
    cases = [make_case(name, seed=i) for i, name in enumerate("abc")]
    sampler = sampler_of(cases, augmentation=EVERYTHING)
    later = sampler.batch(7)
    sampler.batch(3)
    assert_equal(sampler.batch(7), later)
    assert_equal(sampler_of(cases, augmentation=EVERYTHING).batch(7), later)
    assert not torch.equal(sampler.batch(8).image, later.image)
    assert not torch.equal(sampler_of(cases, augmentation=EVERYTHING, seed=1).batch(7).image, later.image)


@pytest.mark.parametrize("place", [(0, 0, 0), (29, 33, 27), (15, 0, 27), (14, 16, 13)])
@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_foreground_patches_hold_foreground_even_at_the_border(place, augmentation):
    sampler = sampler_of([make_case(places=(place,))], fraction=1, augmentation=augmentation, mirror_axes=(0, 1, 2))
    assert all(label.any() for step in range(15) for label in sampler.batch(step).label)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_the_share_of_foreground_patches_is_kept(fraction):
    # One voxel in a volume of 1,200 patches: a random patch almost never holds it.
    case = make_case(shape=(80, 90, 85), places=((3, 4, 5),))
    sampler = sampler_of([case], fraction=fraction)
    found = sum(bool(label.any()) for step in range(60) for label in sampler.batch(step).label)
    assert abs(found - 120 * fraction) <= 2


def test_random_patches_come_from_everywhere():
    case = make_case(places=(None,))
    case.image[0] = np.arange(case.image.size, dtype=np.float32).reshape(case.label.shape)
    corners = torch.cat([sampler_of([case]).batch(step).image[:, 0, 0, 0, 0] for step in range(300)])
    places = np.stack(np.unravel_index(corners.long().numpy(), case.label.shape), axis=1)
    assert (places.min(0) == 0).all() and (places.max(0) == (22, 26, 20)).all()
    np.testing.assert_allclose(places.mean(0), (11, 13, 10), atol=1)


def test_labels_are_drawn_with_equal_chances_however_rare():
    case = make_case(shape=(60, 60, 60), places=((5, 5, 5), (50, 50, 50)))
    case.label[40:58, 2:20, 30:50] = 3
    case.foreground[3] = np.argwhere(case.label == 3).astype(np.int32)
    sampler = sampler_of([case], fraction=1)
    found = Counter(int(label[label > 0].max()) for step in range(150) for label in sampler.batch(step).label)
    assert set(found) == {1, 2, 3} and all(70 < count < 130 for count in found.values())


def test_labels_that_a_case_lacks_do_not_matter():
    case = make_case(places=(None, (9, 9, 9)))
    assert all(label.any() for step in range(5) for label in sampler_of([case], fraction=1).batch(step).label)
    empty = make_case(places=(None, None))
    assert not sampler_of([empty], fraction=1).batch(0).label.any()


def test_patients_come_equally_often_in_changing_order():
    cases = [make_case(name) for name in "abcde"]
    names = [name for step in range(50) for name in sampler_of(cases).batch(step).cases]
    cycles = [tuple(names[i : i + 5]) for i in range(0, 100, 5)]
    assert all(sorted(cycle) == list("abcde") for cycle in cycles)
    assert len(set(cycles)) > 5


def test_small_volumes_are_padded_with_zeros_at_changing_places():
    case = make_case(shape=(5, 20, 6), places=((2, 10, 3),))
    corners = set()
    for step in range(20):
        batch = sampler_of([case], (8, 16, 12), 1, fraction=1).batch(step)
        inside = batch.image[0, 0] > 0
        assert inside.sum() == 5 * 16 * 6 and batch.label.sum() == 1
        assert (batch.image[0, 0][~inside] == 0).all()
        corners.add(tuple(inside.nonzero()[0].tolist()))
    assert len(corners) > 5


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        sampler_of([])
    for wrong in ({"batch_size": 0}, {"fraction": 1.2}, {"seed": -1}):
        with pytest.raises(ValueError, match="must be"):
            sampler_of([make_case()], **wrong)


@pytest.mark.parametrize(("workers", "depth"), [(1, 1), (1, 4), (3, 4), (3, 20)])
def test_prefetched_batches_are_the_same_in_the_same_order(workers, depth):
    sampler = sampler_of([make_case(name, seed=i) for i, name in enumerate("abc")], augmentation=EVERYTHING)
    steps = [4, 5, 6, 2, 9, 0, 1, 17]
    batches = list(prefetch(sampler, steps, workers, depth))
    assert len(batches) == len(steps)
    for step, batch in zip(steps, batches, strict=True):
        assert_equal(batch, sampler.batch(step))


def test_no_steps_no_batches():
    assert list(prefetch(sampler_of([make_case()]), [])) == []


def test_errors_in_the_background_reach_the_consumer():
    case = make_case()
    broken = CachedCase("broken", case.image, case.label[:3], case.spacing, {1: np.full((1, 3), "x")})
    batches = prefetch(sampler_of([broken], fraction=1), range(5))
    with pytest.raises(TypeError):
        next(batches)
    assert patch_threads() == []


def patch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patches")]


def test_leaving_early_stops_the_threads():
    batches = prefetch(sampler_of([make_case()]), range(10**9), workers=2)
    next(batches)
    assert patch_threads()
    batches.close()
    assert patch_threads() == []
    for _ in prefetch(sampler_of([make_case()]), range(10**9)):
        break
    gc.collect()
    assert patch_threads() == []


def test_preparing_in_the_background_leaves_torchs_threads_alone():
    torch.set_num_threads(2)
    list(prefetch(sampler_of([make_case()], augmentation=EVERYTHING), range(3), workers=2))
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_for_a_gpu_lie_in_page_locked_memory():
    sampler = sampler_of([make_case()])
    (batch,) = prefetch(sampler, [3], pin_memory=True)
    assert batch.image.is_pinned() and batch.label.is_pinned()
    assert_equal(batch, sampler.batch(3))
