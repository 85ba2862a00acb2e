from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from common.errors import DataError
from common.imaging.datasets.case import Case, label_counts, load_case
from common.imaging.datasets.dataset import find_dataset, scan_dataset

SHAPE = (4, 5, 6)


def save(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    nibabel.Nifti1Image(array.astype(np.float32), np.eye(4) if affine is None else affine).to_filename(path)
    return path


def label_map(value: float = 1) -> np.ndarray:
    label = np.zeros(SHAPE)
    label[1:3, 1:3, 1:3] = value
    return label


def make(root: Path, images: dict[str, list[str]], declaration: dict | None = None) -> Path:
    """A dataset of folders and the file names in them; a name under ``labels`` is made a label map."""
    for folder, names in images.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            save(root / folder / name, label_map() if folder.startswith("labels") else None)
    if declaration is not None:
        (root / "dataset.json").write_text(json.dumps(declaration))
    return root


def entry(name: str, labels: str = "labelsTr", images: str = "imagesTr", label: str = "") -> dict[str, str]:
    return {"image": f"./{images}/{name}.nii.gz", "label": f"./{labels}/{label or name}.nii.gz"}


def decathlon(**changes) -> dict:
    return {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"],
    } | changes


def test_reads_the_real_hippocampus_dataset(hippocampus) -> None:
    dataset = find_dataset(hippocampus)
    assert (dataset.layout, len(dataset.cases), dataset.channels) == ("decathlon", 220, ("MRI",))
    assert dataset.labels == {1: "Anterior", 2: "Posterior"}
    assert [case.name for case in dataset.cases] == sorted(case.name for case in dataset.cases)
    for case in dataset.cases[:12]:
        volume, label = load_case(case, dataset.labels, channels=1)
        assert label is not None
        np.testing.assert_array_equal(volume.array[0], nibabel.load(case.images[0]).get_fdata(dtype=np.float32))
        np.testing.assert_array_equal(label, nibabel.load(case.label).get_fdata())


def test_decathlon_layout_ignores_hidden_files(tmp_path) -> None:
    files = ["b.nii.gz", "a.nii.gz"]
    root = make(tmp_path, {"imagesTr": files, "labelsTr": files}, decathlon())
    (root / "imagesTr" / "._a.nii.gz").write_bytes(b"Mac OS X")
    dataset, problems = scan_dataset(root)
    assert problems == []
    assert dataset.cases[0] == Case("a", (root / "imagesTr/a.nii.gz",), root / "labelsTr/a.nii.gz")
    assert [case.name for case in dataset.cases] == ["a", "b"]


def test_nnunet_layout(tmp_path) -> None:
    images = [f"{case}_{channel:04d}.nii.gz" for case in "ab" for channel in range(2)]
    root = make(
        tmp_path,
        {"imagesTr": images, "labelsTr": ["a.nii.gz", "b.nii.gz"]},
        {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"},
    )
    dataset = find_dataset(root)
    assert (dataset.layout, dataset.channels, dataset.labels) == ("nnunet", ("T1", "T2"), {1: "tumour"})
    assert [path.name for path in dataset.cases[1].images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert load_case(dataset.cases[0], dataset.labels)[0].array.shape == (2, *SHAPE)


def test_first_nnunet_version_lists_cases_without_channel_numbers(tmp_path) -> None:
    images = ["a_0000.nii.gz", "b_0000.nii.gz"]
    root = make(tmp_path, {"imagesTr": images, "labelsTr": ["a.nii.gz", "b.nii.gz"]}, decathlon())
    dataset = find_dataset(root)
    assert (dataset.layout, [case.name for case in dataset.cases]) == ("nnunet", ["a", "b"])


def test_plain_layout_without_declaration(tmp_path) -> None:
    dataset = find_dataset(make(tmp_path, {"images": ["a.nii", "b.nii.gz"], "labels": ["a.nii.gz", "b.nii"]}))
    assert (dataset.layout, dataset.channels, dataset.labels) == ("plain", ("channel_0",), {})
    assert dataset.cases[0].label == tmp_path / "labels/a.nii.gz"


def test_a_4d_image_without_declaration_tells_its_channels(tmp_path) -> None:
    save(tmp_path / "images/a.nii.gz", np.random.default_rng(0).random((*SHAPE, 3)))
    save(tmp_path / "labels/a.nii.gz", label_map())
    dataset = find_dataset(tmp_path)
    assert dataset.channels == ("channel_0", "channel_1", "channel_2")
    assert load_case(dataset.cases[0], None)[0].array.shape == (3, *SHAPE)


def test_names_that_end_in_four_digits_are_not_channels(tmp_path) -> None:
    names = ["patient_0000.nii.gz", "patient_0001.nii.gz"]
    dataset = find_dataset(make(tmp_path / "plain", {"images": names, "labels": names}))
    assert [case.name for case in dataset.cases] == ["patient_0000", "patient_0001"]
    bare = find_dataset(make(tmp_path / "bare", {".": ["patient_0001.nii.gz", "patient_0002.nii.gz"]}))
    assert [case.name for case in bare.cases] == ["patient_0001", "patient_0002"]


def test_a_folder_of_files_and_a_single_file(tmp_path) -> None:
    root = make(tmp_path, {".": ["b.nii.gz", "a.nii"]})
    (root / "notes.txt").write_text("free text")
    dataset = find_dataset(root)
    assert (dataset.layout, [case.name for case in dataset.cases]) == ("files", ["a", "b"])
    assert all(case.label is None for case in dataset.cases)
    assert find_dataset(root / "a.nii").cases == (Case("a", (root / "a.nii",), None),)
    volume, label = load_case(dataset.cases[0], {1})
    assert volume.array.shape == (1, *SHAPE)
    assert label is None


def test_a_folder_of_files_groups_channels(tmp_path) -> None:
    root = make(tmp_path, {".": ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"]})
    assert [(case.name, len(case.images)) for case in find_dataset(root).cases] == [("a", 2), ("b", 2)]
    (root / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"b_0000.nii.gz.*channels 0000; expected 0000 to 0001"):
        find_dataset(root)


def test_refuses_missing_empty_and_unknown_folders(tmp_path) -> None:
    with pytest.raises(DataError, match=r"nowhere: does not exist"):
        find_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no cases: looked for imagesTr/ and labelsTr/.*plain.*directly inside"):
        find_dataset(tmp_path)
    (tmp_path / "table.csv").write_text("case\n")
    with pytest.raises(DataError, match="not a dataset folder"):
        find_dataset(tmp_path / "table.csv")
    make(tmp_path / "Task04", {"images": ["a.nii"], "labels": ["a.nii"]})
    with pytest.raises(DataError, match="Task04 inside looks like a dataset"):
        find_dataset(tmp_path)
    with pytest.raises(DataError, match="holds no cases"):
        find_dataset(make(tmp_path / "hollow", {"images": [], "labels": []}))


@pytest.mark.parametrize(
    ("folders", "text"),
    [
        ({"images": ["a.nii", "b.nii"], "labels": ["a.nii"]}, r"b\.nii: has no label map: labels/b\.nii\.gz"),
        ({"images": ["a.nii"], "labels": ["a.nii", "b.nii"]}, r"labels/b\.nii: has no image in images/"),
        ({"images": ["a.nii", "a.nii.gz"], "labels": ["a.nii"]}, r"a\.nii\.gz: is a second file .* a\.nii: remove"),
        ({"images": ["a.nii"], "labels": ["a.nii", "a.nii.gz"]}, r"labels/a\.nii\.gz: is a second file"),
        ({"images": ["a.nii"]}, r"labels: does not exist"),
        ({"imagesTr": ["a_0000.nii", "a_0002.nii"], "labelsTr": ["a.nii"]}, r"channels 0000, 0002; expected 0000"),
    ],
)
def test_refuses_cases_that_are_not_complete(tmp_path, folders, text) -> None:
    with pytest.raises(DataError, match=text):
        find_dataset(make(tmp_path, folders))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": {"1": "a", "01": "b"}}, "declared twice"),
        ({"labels": {"1": "a", "2": " A"}}, "labels 1 and 2 are both named 'A'"),
        ({"labels": {"background": 1, "tumour": 2}}, "background has the value 1; it must be 0"),
        ({"labels": {"0": "background", "1": "a", "2": "ignore"}}, r"label 2 \('ignore'\) marks voxels without"),
        ({"labels": {"background": 0, "a": 1, "ignore": 2}}, r"label 2 \('ignore'\)"),
        ({"labels": {"+-1": "a"}}, "whole numbers from 0 to 255"),
        ({"labels": {"9" * 5000: "a"}}, "whole numbers from 0 to 255"),
        ({"labels": {"tumour": [1, 2]}}, "region of several values"),
        ({"labels": {"tumour": 1.5}}, "whole numbers from 0 to 255"),
        ({"labels": {"tumour": 300}}, "whole numbers from 0 to 255"),
        ({"labels": ["tumour"]}, "labels must be written"),
        ({"modality": {"1": "MRI"}}, "number the channels from 0"),
        ({"file_ending": ".png"}, "convert the images"),
        ({"training": [{"label": "x"}]}, "training must be a list"),
        ({"training": 7}, "training must be a list"),
        ({"training": []}, "its training list is empty"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": 1}]}, "training must be a list"),
        (
            {"training": [entry("a"), entry("b", "labelsTr2")]},
            "names the label ./labelsTr2/b.nii.gz of b, and labelsTr/",
        ),
        ({"training": [entry("a"), entry("b", label="a")]}, "names the label ./labelsTr/a.nii.gz of b"),
        ({"training": [entry("a"), entry("b", images="C:\\\\scans")]}, "names the image ./C://scans/b.nii.gz of b"),
        ({"training": [{"image": "./imagesTr/a.nii.gz"}] * 2}, "lists a twice"),
        ({"training": [{"image": f"imagesTr/{name}.nii.gz"} for name in "abc"]}, r"c\.nii\.gz: is listed .* not exist"),
        ({"channel_names": {"0": "T1"}}, r"a\.nii\.gz: has no channel number"),
    ],
)
def test_refuses_unusable_declarations(tmp_path, changes, text) -> None:
    files = ["a.nii.gz", "b.nii.gz"]
    with pytest.raises(DataError, match=text):
        find_dataset(make(tmp_path, {"imagesTr": files, "labelsTr": files}, decathlon(**changes)))


def test_refuses_a_declaration_that_is_not_json(tmp_path) -> None:
    root = make(tmp_path, {"images": ["a.nii"], "labels": ["a.nii"]})
    for content in ("{", "[1]"):
        (root / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json.*JSON"):
            find_dataset(root)


def test_keys_that_are_written_twice_are_refused(tmp_path) -> None:
    root = make(tmp_path, {"images": ["a.nii"], "labels": ["a.nii"]})
    for content in ('{"labels": {"1": "a", "1": "b"}}', '{"labels": {"1": "a"}, "labels": {"1": "b"}}'):
        (root / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=r"dataset\.json: key '\w+' is declared twice"):
            find_dataset(root)
    (root / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        find_dataset(root)


def test_paths_may_be_written_as_windows_does(tmp_path) -> None:
    files = ["a.nii.gz", "b.nii.gz"]
    training = [
        {"image": f"{root}imagesTr\\{name}", "label": f"{root}labelsTr\\{name}"}
        for root, name in zip((".\\", "C:\\data\\"), files, strict=True)
    ]
    root = make(tmp_path, {"imagesTr": files, "labelsTr": files}, decathlon(training=training))
    assert [case.name for case in find_dataset(root).cases] == ["a", "b"]


def test_what_changes_nothing_is_a_warning(tmp_path) -> None:
    names = ["a_0000.nii.gz", "b_0000.nii.gz"]
    content = {
        "channel_names": {"0": "T1"},
        "labels": {"outside": 0, "tumour": 1},
        "file_ending": "nii.gz",
        "numTraining": 7,
    }
    root = make(tmp_path, {"imagesTr": names, "labelsTr": ["a.nii.gz", "b.nii.gz"]}, content)
    _, problems = scan_dataset(root)
    assert [(problem.severity, problem.text) for problem in problems] == [
        ("warning", "file_ending 'nii.gz' is read as '.nii.gz'; write the dot"),
        ("warning", "label 0 is named 'outside', and is read as background"),
        ("warning", "numTraining is 7, and there are 2 cases"),
    ]


def test_scan_goes_on_and_names_every_problem(tmp_path) -> None:
    names = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "unlisted.nii.gz"]
    root = make(tmp_path, {"imagesTr": names, "labelsTr": [*names[:2], names[3], "e.nii.gz"]}, decathlon())
    (root / "imagesTr" / "readme.txt").write_text("text")
    declaration = decathlon()
    declaration["training"] += [{"image": "imagesTr/c.nii.gz"}, {"image": "imagesTr/d.nii.gz"}]
    (root / "dataset.json").write_text(json.dumps(declaration))
    dataset, problems = scan_dataset(root)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    found = {(problem.severity, problem.path.name) for problem in problems}
    assert found == {
        ("error", "c.nii.gz"),
        ("error", "d.nii.gz"),
        ("error", "e.nii.gz"),
        ("warning", "unlisted.nii.gz"),
        ("warning", "readme.txt"),
    }
    with pytest.raises(DataError, match="and 2 more; fedvox-client check"):
        find_dataset(root)


def image_with(value: float, where=(1, 2, 3)) -> np.ndarray:
    image = np.arange(float(np.prod(SHAPE))).reshape(SHAPE)
    image[where] = value
    return image


SHIFTED = np.eye(4)
SHIFTED[0, 3] = 0.3
FLIPPED = np.diag([-1.0, 1, 1, 1])


@pytest.mark.parametrize(
    ("image", "label", "label_affine", "text"),
    [
        (image_with(np.nan), label_map(), None, r"image\.nii: holds 1 voxel that is NaN or infinite"),
        (image_with(-np.inf), label_map(), None, r"image\.nii: holds 1 voxel that is NaN or infinite"),
        (np.full(SHAPE, 7), label_map(), None, r"image\.nii: is empty: every voxel is 7"),
        (image_with(0), label_map(3), None, r"label\.nii: .* not declared: 3 \(declared: 1, 2\)"),
        (image_with(0), label_map()[:-1], None, r"label\.nii: its shape \(3, 5, 6\) differs from \(4, 5, 6\) of image"),
        (image_with(0), label_map(), SHIFTED, r"label\.nii: its affine .* 0\.3 mm away"),
        (image_with(0), label_map(), FLIPPED, r"label\.nii: its affine"),
        (image_with(0), label_map(0.5), None, r"label\.nii: .*not whole"),
    ],
)
def test_load_case_refuses_by_file_name(tmp_path, image, label, label_affine, text) -> None:
    image_path = save(tmp_path / "image.nii", image)
    label_path = save(tmp_path / "label.nii", label, label_affine)
    with pytest.raises(DataError, match=text):
        load_case(Case("a", (image_path,), label_path), {1, 2})


def test_load_case_names_the_constant_channel(tmp_path) -> None:
    files = (save(tmp_path / "a_0000.nii"), save(tmp_path / "a_0001.nii", np.zeros(SHAPE)))
    with pytest.raises(DataError, match=r"a_0001\.nii: is empty"):
        load_case(Case("a", files, None), None)
    together = save(tmp_path / "a.nii", np.stack([image_with(0), np.zeros(SHAPE)], axis=-1))
    with pytest.raises(DataError, match=r"a\.nii: is empty.* in channel 1"):
        load_case(Case("a", (together,), None), None)
    with pytest.raises(DataError, match="has 2 channels, expected 1"):
        load_case(Case("a", (together,), None), None, channels=1)


def test_load_case_accepts_what_only_looks_different(tmp_path) -> None:
    """The label map is stored from right to left and its affine is off by what float32 quaternions lose."""
    label = label_map(2)
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = (SHAPE[0] - 1 + 0.004, 0, 0)
    case = Case("a", (save(tmp_path / "image.nii"),), save(tmp_path / "label.nii", label[::-1], affine))
    for labels in ({1, 2}, None):
        np.testing.assert_array_equal(load_case(case, labels)[1], label)


def test_label_counts_agree_with_bincount() -> None:
    label = np.random.default_rng(0).integers(0, 256, (7, 900, 800), dtype=np.uint8)
    np.testing.assert_array_equal(label_counts(label), np.bincount(label.ravel(), minlength=256))
