import mmap
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.errors import DataError, OutputError
from common.imaging.cache import entry_file as entries_module
from common.imaging.cache.case_cache import FOREGROUND_SAMPLES, CaseCache, sample_voxels
from common.imaging.cache.entry_file import DIGESTS_NAME, ENTRY_SUFFIX, FileDigests
from common.imaging.datasets.case import Case, load_case
from common.imaging.datasets.dataset import find_dataset
from common.imaging.preprocessing import preprocess_image, preprocess_label
from common.plan.plan import IntensityPlan, PreprocessingPlan
from common.plan.scanner_shift import ScannerShift
from common.system.state_file import read_sealed, write_sealed

PLAN = PreprocessingPlan(spacing=(1.0, 1.0, 1.0))
LABELS = (1, 2)
REPOSITORY = Path(__file__).resolve().parents[4]


def write_case(root: Path, name: str, seed: int = 0, channels: int = 1) -> Case:
    random = np.random.default_rng(seed)
    shape = (14, 12, 10)
    label = np.zeros(shape, np.uint8)
    label[3:9, 4:8, 2:6] = 1
    label[9:11, 4:8, 2:6] = 2
    image = random.normal(size=(*shape, channels)) + 5 + label[..., None] * 3
    affine = np.diag([1.0, 1.2, 1.5, 1.0])
    paths = root / "images" / f"{name}.nii", root / "labels" / f"{name}.nii"
    for path, array in zip(paths, (image.squeeze(-1) if channels == 1 else image, label), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = np.uint8 if array is label else np.float32
        nibabel.save(nibabel.Nifti1Image(array.astype(dtype), affine), path)
    return Case(name=name, images=(paths[0],), label=paths[1])


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{ENTRY_SUFFIX}"))


def assert_is_fresh(cached, case, plan=PLAN):
    """The cached arrays are those that preprocessing gives now."""
    volume, label = load_case(case, LABELS)
    expected = preprocess_image(volume, plan)
    np.testing.assert_array_equal(cached.image, expected.image)
    np.testing.assert_array_equal(cached.label, preprocess_label(label, expected.geometry, plan))
    assert cached.spacing == expected.geometry.spacing and cached.name == case.name
    for value in LABELS:
        np.testing.assert_array_equal(cached.foreground[value], np.argwhere(cached.label == value))


@pytest.fixture
def case(tmp_path) -> Case:
    return write_case(tmp_path / "data", "anna")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "some" / "cache"


def test_a_case_is_preprocessed_once_and_then_opened(case, folder):
    first = CaseCache(folder, PLAN, LABELS).get(case)
    assert_is_fresh(first, case)
    (entry,) = entries(folder)
    written = entry.stat().st_mtime_ns, entry.stat().st_ino
    assert_is_fresh(CaseCache(folder, PLAN, LABELS).get(case), case)
    assert (entry.stat().st_mtime_ns, entry.stat().st_ino) == written


def test_arrays_on_disk_are_mapped_and_cannot_be_changed(case, folder):
    cached = CaseCache(folder, PLAN, LABELS).get(case)
    for array in (cached.image, cached.label, cached.foreground[1]):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


def test_without_a_folder_nothing_is_written(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    cache = CaseCache(None, PLAN, LABELS)
    cached = cache.get(case)
    assert_is_fresh(cached, case)
    assert cache.get(case).image is cached.image
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="read-only"):
        cached.image[:] = 0


def test_a_changed_source_file_is_noticed_even_with_its_old_size_and_time(case, folder, tmp_path):
    path = case.images[0]
    long_ago = 10**18
    os.utime(path, ns=(long_ago, long_ago))
    old = CaseCache(folder, PLAN, LABELS).get(case)
    other = write_case(tmp_path / "other", "anna", seed=1).images[0]
    assert other.stat().st_size == path.stat().st_size
    shutil.copyfile(other, path)
    os.utime(path, ns=(long_ago, long_ago))
    new = CaseCache(folder, PLAN, LABELS).get(case)
    assert not np.array_equal(old.image, new.image)
    assert_is_fresh(new, case)


def test_a_changed_label_map_is_noticed(case, folder):
    CaseCache(folder, PLAN, LABELS).get(case)
    image = nibabel.load(case.label)
    changed = np.asarray(image.dataobj).copy()
    changed[0, 0, 0] = 2
    nibabel.save(nibabel.Nifti1Image(changed, image.affine), case.label)
    assert_is_fresh(CaseCache(folder, PLAN, LABELS).get(case), case)


def test_equal_content_under_another_name_shares_an_entry(case, folder, tmp_path):
    twin = write_case(tmp_path / "twin", "berta")
    cached = CaseCache(folder, PLAN, LABELS).prepare([case, twin])
    assert [c.name for c in cached] == ["anna", "berta"]
    assert len(entries(folder)) == 1


def test_other_settings_make_other_entries_and_keep_the_old(case, folder):
    plans = [
        PLAN,
        PLAN.model_copy(update={"spacing": (2.0, 2.0, 2.0)}),
        PLAN.model_copy(update={"intensity": (IntensityPlan(clip="none"),)}),
        PLAN.model_copy(update={"image_order": 1}),
    ]
    for plan in plans:
        assert_is_fresh(CaseCache(folder, plan, LABELS).get(case), case, plan)
    assert len(entries(folder)) == len(plans)
    CaseCache(folder, PLAN, (1, 2, 3)).get(case)
    assert len(entries(folder)) == len(plans) + 1


def test_scanner_shift_changes_images_reproducibly_and_each_its_own_way(case, folder, tmp_path):
    shift = ScannerShift(noise=0.1)
    # Same image but for one voxel, so any difference in the noise is the seed's.
    twin = write_case(tmp_path / "twin", "berta")
    image = nibabel.load(twin.images[0])
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] += 1e-3
    nibabel.save(nibabel.Nifti1Image(values, image.affine), twin.images[0])

    cache = CaseCache(folder, PLAN, LABELS)
    plain, shifted = cache.get(case), cache.get(case, shift, 7)
    assert not np.allclose(plain.image, shifted.image, atol=0.1)
    np.testing.assert_array_equal(plain.label, shifted.label)
    np.testing.assert_array_equal(CaseCache(None, PLAN, LABELS).get(case, shift, 7).image, shifted.image)
    assert not np.allclose(cache.get(case, shift, 8).image, shifted.image, atol=0.1)
    assert not np.allclose(cache.get(twin, shift, 7).image, shifted.image, atol=0.1)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(position: int):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 4
        path.write_bytes(data)

    damage.__name__ = f"flip_byte_{position}"
    return damage


def zero_the_end(path: Path) -> None:
    """What a crash leaves when the file system had the size but not yet the content."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def mix_up(path: Path) -> None:
    other = next(p for p in entries(path.parent) if p != path)
    shutil.copyfile(other, path)


@pytest.mark.parametrize(
    "damage", [cut_short, empty, flip(2), flip(9), flip(60), flip(900), flip(-1), zero_the_end, lengthen, mix_up]
)
def test_a_damaged_entry_is_made_again(case, folder, tmp_path, damage):
    CaseCache(folder, PLAN, LABELS).get(case)
    (path,) = entries(folder)
    whole = path.read_bytes()
    CaseCache(folder, PLAN, LABELS).get(write_case(tmp_path / "data", "berta", seed=9))
    damage(path)
    assert path.read_bytes() != whole
    assert_is_fresh(CaseCache(folder, PLAN, LABELS).get(case), case)
    assert path.read_bytes() == whole


def test_contents_are_remembered_while_size_and_times_stay(case, folder, monkeypatch):
    monkeypatch.setattr(entries_module, "_SETTLED_NS", -(10**12))
    path = case.images[0]
    os.utime(path, ns=(10**18, 10**18))
    digests = FileDigests(folder)
    first = digests.digest(path)
    digests.save()
    assert FileDigests(folder).digest(path) == first
    known, _ = read_sealed(folder / DIGESTS_NAME, "")
    known[str(path)][3] = "remembered"
    write_sealed(folder / DIGESTS_NAME, known)
    assert FileDigests(folder).digest(path) == "remembered"
    # The same size and time of change once more, but the file was touched since.
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(10**18, 10**18))
    assert FileDigests(folder).digest(path) not in (first, "remembered")


def test_files_that_may_still_change_within_the_clocks_resolution_are_not_remembered(case, folder):
    digests = FileDigests(folder)
    digests.digest(case.images[0])
    digests.save()
    assert not (folder / DIGESTS_NAME).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": 3}'])
def test_damaged_memory_of_digests_does_no_harm(case, folder, content):
    CaseCache(folder, PLAN, LABELS).get(case)
    (folder / DIGESTS_NAME).write_bytes(content)
    assert_is_fresh(CaseCache(folder, PLAN, LABELS).get(case), case)


def fingerprint_of_cache(folder: Path, root: Path, barrier, results) -> None:
    cases = find_dataset(root).cases
    cache = CaseCache(folder, PLAN, LABELS)
    barrier.wait(timeout=60)
    digest = blake2b()
    for cached in cache.prepare(cases, workers=2):
        digest.update(cached.image.tobytes() + cached.label.tobytes())
    results.put(digest.hexdigest())


def test_two_processes_at_once_make_one_valid_entry_per_case(folder, tmp_path):
    cases = [write_case(tmp_path / "data", f"case{i}", seed=i) for i in range(6)]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (folder, tmp_path / "data", barrier, results)
    processes = [context.Process(target=fingerprint_of_cache, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert found[0] == found[1]
    assert len(entries(folder)) == len(cases)
    assert {path.name for path in folder.iterdir()} <= {*(path.name for path in entries(folder)), DIGESTS_NAME}
    for cached, case in zip(CaseCache(folder, PLAN, LABELS).prepare(cases), cases, strict=True):
        assert_is_fresh(cached, case)


def test_a_folder_that_cannot_be_made(case, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cache cannot be written") as error:
        CaseCache(tmp_path / "file" / "cache", PLAN, LABELS).get(case)
    assert str(tmp_path / "file") in str(error.value) and "choose another" in str(error.value)


@pytest.mark.parametrize("room", [0, 3000])
def test_a_full_disk_is_an_error_and_leaves_nothing_behind(case, folder, tmp_path, room):
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    script = f"""
import resource
from pathlib import Path
from common.errors import OutputError
from common.imaging.cache.case_cache import CaseCache
from common.imaging.datasets.dataset import find_dataset
from common.plan.plan import PreprocessingPlan
cases = find_dataset(Path({str(tmp_path / "data")!r})).cases
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    CaseCache(Path({str(folder)!r}), PreprocessingPlan(), (1, 2)).prepare(cases, 2)
except OutputError as error:
    print("refused:", error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout and str(folder) in done.stdout and "free some space" in done.stdout
    assert [path.name for path in folder.iterdir() if path.name != DIGESTS_NAME] == []


def test_cases_that_cannot_be_trained_on_are_refused_by_name(case, folder, tmp_path):
    cache = CaseCache(folder, PLAN, LABELS)
    with pytest.raises(DataError, match=r"anna\.nii: has no label map"):
        cache.get(Case(name="anna", images=case.images, label=None))
    with pytest.raises(DataError, match=r"gone\.nii: cannot be read"):
        cache.get(Case(name="gone", images=(tmp_path / "gone.nii",), label=case.label))
    with pytest.raises(DataError, match=r"two\.nii: .*2 channels, expected 1"):
        cache.get(write_case(tmp_path / "two", "two", channels=2))
    with pytest.raises(DataError, match=r"anna\.nii"):
        CaseCache(folder, PLAN, (1,)).get(case)


@pytest.mark.parametrize("workers", [1, 3])
def test_many_cases_in_order_with_progress(folder, tmp_path, workers):
    cases = [write_case(tmp_path / "data", f"case{i}", seed=i) for i in range(5)]
    seen = []
    cached = CaseCache(folder, PLAN, LABELS).prepare(cases, workers, lambda done, total: seen.append((done, total)))
    assert [c.name for c in cached] == [c.name for c in cases]
    assert seen == [(i, 5) for i in range(1, 6)]
    cases[2].images[0].write_bytes(b"not a scan")
    with pytest.raises(DataError, match=r"case2\.nii"):
        CaseCache(folder, PLAN, LABELS).prepare(cases, workers)


def test_sampled_voxels_are_few_distinct_repeatable_and_in_the_mask():
    mask = np.random.default_rng(0).random((40, 50, 30)) < 0.5
    some = sample_voxels(mask, 500, (1, 2))
    assert some.shape == (500, 3) and len(np.unique(some, axis=0)) == 500 and some.dtype == np.int32
    assert mask[tuple(some.T)].all()
    np.testing.assert_array_equal(some, sample_voxels(mask, 500, (1, 2)))
    assert not np.array_equal(some, sample_voxels(mask, 500, (1, 3)))
    np.testing.assert_array_equal(sample_voxels(mask, mask.size, (0,)), np.argwhere(mask))
    assert mask.sum() > FOREGROUND_SAMPLES and len(sample_voxels(mask, FOREGROUND_SAMPLES, (0,))) == FOREGROUND_SAMPLES


def test_real_cases(hippocampus, folder):
    cases = find_dataset(hippocampus).cases[:3]
    for cached, case in zip(CaseCache(folder, PLAN, LABELS).prepare(cases, 2), cases, strict=True):
        assert_is_fresh(cached, case)
        assert all(len(voxels) > 100 for voxels in cached.foreground.values())


def test_a_new_cache_is_its_owners_alone(tmp_path):
    folder = tmp_path / "cache" / "fedvox"
    CaseCache(folder, PLAN, LABELS).get(write_case(tmp_path, "a"))
    assert entries(folder)
    assert folder.stat().st_mode & 0o077 == 0
