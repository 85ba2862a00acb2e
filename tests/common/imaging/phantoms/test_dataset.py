from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy import ndimage

from common.errors import OutputError
from common.imaging.datasets.case import load_case
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.dataset import PHANTOM_LABELS, draw_phantom, phantom_sites, write_phantom_dataset


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms") / "data", (2, 3, 2, 2), seed=7)


def test_is_a_usable_dataset_that_says_phantom(phantoms) -> None:
    dataset = find_dataset(phantoms)
    assert (dataset.layout, dataset.labels, len(dataset.cases)) == ("decathlon", PHANTOM_LABELS, 9)
    assert "PHANTOM" in json.loads((phantoms / "dataset.json").read_text())["name"]
    assert all("phantom" in case.name for case in dataset.cases)
    for case in dataset.cases:
        label = load_case(case, dataset.labels, channels=1)[1]
        assert all((label == value).sum() > 100 for value in PHANTOM_LABELS), case.name


def test_sites_table_names_every_case_once(phantoms) -> None:
    with (phantoms / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case.name for case in find_dataset(phantoms).cases]
    counts = [sum(row["site"] == site.name for row in rows) for site in phantom_sites(4, 7)]
    assert counts == [2, 3, 2, 2]


def test_sites_differ_in_scale_spacing_orientation_and_number_format(phantoms) -> None:
    dataset = find_dataset(phantoms)
    volumes = [load_case(dataset.cases[index], None)[0] for index in (0, 2, 5, 7)]
    assert len({volume.grid.spacing for volume in volumes}) == 4
    assert {volume.source.orientation for volume in volumes} == {"RAS", "LPS", "LAS"}
    assert len({str(volume.source.header.get_data_dtype()) for volume in volumes}) == 3
    highest = sorted(float(np.percentile(volume.array, 99)) for volume in volumes)
    assert highest[-1] > 10 * highest[0]
    extents = [np.multiply(volume.grid.shape, volume.grid.spacing) for volume in volumes]
    np.testing.assert_allclose(extents, np.broadcast_to((80, 96, 80), (4, 3)), atol=2)


def test_the_same_seed_gives_the_same_files(tmp_path) -> None:
    roots = [
        write_phantom_dataset(tmp_path / name, (1, 1), seed, (24, 24, 24))
        for name, seed in zip("abc", (1, 1, 2), strict=True)
    ]
    files = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in roots]
    assert files[0] == files[1] == files[2]
    assert all((roots[0] / name).read_bytes() == (roots[1] / name).read_bytes() for name in files[0])
    scans = [name for name in files[0] if name.suffix == ".gz"]
    assert all((roots[0] / name).read_bytes() != (roots[2] / name).read_bytes() for name in scans)


def test_anatomy_varies_and_lies_where_it_should() -> None:
    drawn = [draw_phantom((40, 48, 40), np.random.default_rng(seed)) for seed in range(4)]
    for image, label in drawn:
        centres = {value: ndimage.center_of_mass(label == value) for value in PHANTOM_LABELS}
        assert centres[1][0] > 20 > centres[3][0], "organ on the right, node on the left"
        around_core = ndimage.binary_dilation(label == 2) & (label != 2)
        assert (label[around_core] == 1).mean() > 0.7, "the core lies in the organ"
        assert image[0, 0, 0] == 0, "air around the body"
    assert np.mean(drawn[0][1] != drawn[1][1]) > 0.01


def test_intensity_alone_does_not_tell_the_structures(phantoms) -> None:
    """One window of normalised intensity for all sites, the best there is, stays far from a usable Dice."""
    intensities, labels = [], []
    dataset = find_dataset(phantoms)
    for case in dataset.cases:
        volume, label = load_case(case, None)
        intensities.append(((volume.array - volume.array.mean()) / volume.array.std()).ravel())
        labels.append(label.ravel())
    intensity, label = np.concatenate(intensities), np.concatenate(labels)
    levels = np.quantile(intensity, np.linspace(0, 1, 60))
    below = np.searchsorted(np.sort(intensity), levels)
    for value, name in PHANTOM_LABELS.items():
        truth = np.searchsorted(np.sort(intensity[label == value]), levels)
        windows = [
            2 * (truth[high] - truth[low]) / (below[high] - below[low] + (label == value).sum())
            for low in range(60)
            for high in range(low + 1, 60)
        ]
        assert max(windows) < 0.65, name


def test_any_number_of_sites_has_its_own_scanner() -> None:
    sites = phantom_sites(30, seed=0)
    assert len({site.name for site in sites}) == len({site.shift for site in sites}) == 30
    assert [site.name[-2:] for site in sites[25:27]] == ["-z", "aa"]


def test_refuses_a_folder_in_use_and_leaves_it_alone(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan.txt").write_text("mine")
    with pytest.raises(OutputError, match="data: exists already"):
        write_phantom_dataset(tmp_path / "data", (1,), seed=0)
    with pytest.raises(OutputError, match="cannot be written"):
        write_phantom_dataset(tmp_path / "data" / "scan.txt" / "new", (1,), seed=0)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "scan.txt"]
