"""Files with anything in them: every one is read, or refused with its name, in bounded memory."""

from __future__ import annotations

import copy
import gzip
import json
import resource
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.errors import DataError
from common.imaging.datasets.case import Case, image_problems
from common.imaging.datasets.comparison import SiteTerms, Wanted, compare
from common.imaging.datasets.dataset import scan_dataset
from common.imaging.io.nifti import channel_count, read_label, read_volume
from common.imaging.plausibility import header_contradictions, padding_problem
from common.imaging.ranges import USUAL_RANGES

SHAPE = (5, 6, 7)
MOST_BYTES = 400 * 2**20
NUMBERS = (0, 1, -1, 2, 3, 5, 8, 255, 256, 348, 540, 32767, -32768, 1e-30, 1e30, 2**31 - 1, np.nan, np.inf, -np.inf)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def changed_file(random: np.random.Generator) -> bytes:
    """A small scan with one to four changes to its header, or to any of its bytes."""
    second = random.random() < 0.2
    image_class: Any = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = image_class(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), np.diag([2.0, 2, 2, 1]))
    content = bytearray(image.to_bytes())
    size = 540 if second else 348
    header = np.frombuffer(content, dtype=image.header.template_dtype, count=1).copy()
    for _ in range(random.integers(1, 5)):
        name = str(random.choice(header.dtype.names))
        field = header[name]
        if field.dtype.kind in "iuf":
            place = random.integers(field.size)
            with np.errstate(all="ignore"):
                field.reshape(-1)[place] = np.array(random.choice(NUMBERS)).astype(field.dtype)
        else:
            header[name] = random.bytes(field.dtype.itemsize)
    content[:size] = header.tobytes()
    kind = random.random()
    if kind < 0.2:
        for place in random.integers(len(content), size=3):
            content[place] = random.integers(256)
    elif kind < 0.3:
        del content[random.integers(len(content)) :]
    if random.random() < 0.5:
        content = bytearray(gzip.compress(content, 1))
        if random.random() < 0.1:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
    return bytes(content)


def read_in_every_way(path: Path) -> None:
    for read in (channel_count, read_label):
        try:
            read(path)
        except DataError as error:
            assert error.path == path
    try:
        volume = read_volume(path)
    except DataError as error:
        assert error.path == path
        return
    image_problems(Case("a", (path,), None), volume)
    header_contradictions(volume.source, USUAL_RANGES)
    for values in volume.array:
        padding_problem(values, float(values.min()), float(values.max()))


def fuzz_headers(path: Path, count: int) -> None:
    before = peak_bytes()
    for seed in range(count):
        path.write_bytes(changed_file(np.random.default_rng(seed)))
        with np.errstate(all="ignore"):
            read_in_every_way(path)
    assert peak_bytes() - before < MOST_BYTES


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        1,
        -1,
        2,
        300,
        1.5,
        1e400,
        10**30,
        "",
        "0",
        "1",
        "a",
        "b",
        "ignore",
        "background",
        "\x1b[2J",
        "é\ud800",
    ),
    *(
        "é\ud800",
        [],
        [1, 2],
        ["T1"],
        {},
        {"0": "a"},
        {"a": {"b": [{}]}},
        "..\\..\\x",
        "/etc/passwd",
        "imagesTr/a.nii",
        ".nii.gz",
    ),
)


def changed_declaration(random: np.random.Generator) -> str:
    content: dict[str, Any] = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "numTraining": 1,
        "file_ending": ".nii",
        "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}],
    }
    if random.random() < 0.3:
        content["channel_names"] = content.pop("modality")
    if random.random() < 0.2:
        content["dataset"] = {"a": {"images": ["imagesTr/a.nii"], "label": "labelsTr/a.nii"}}
    for _ in range(random.integers(1, 4)):
        place: Any = content
        while isinstance(place, dict | list) and place:
            key = random.choice(list(place)) if isinstance(place, dict) else random.integers(len(place))
            if not isinstance(place[key], dict | list) or random.random() < 0.4:
                value = copy.deepcopy(VALUES[random.integers(len(VALUES))])
                if isinstance(place, dict) and random.random() < 0.3:
                    place[str(VALUES[random.integers(len(VALUES))])] = value
                else:
                    place[key] = value
                break
            place = place[key]
    text = json.dumps(content)
    if random.random() < 0.1:
        cut = random.integers(len(text))
        text = text[:cut] + str(random.choice(list('{}[],:"0'))) + text[cut + 1 :]
    return text


def fuzz_declarations(root: Path, count: int) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
        nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.eye(4)).to_filename(root / folder / "a.nii")
    wanted = Wanted({1: "a", 2: "b"}, ("MRI",), "MR")
    accepted = 0
    for seed in range(count):
        (root / "dataset.json").write_text(changed_declaration(np.random.default_rng(seed)), encoding="utf-8")
        try:
            dataset, problems = scan_dataset(root)
        except DataError:
            continue
        _, differences = compare(dataset, wanted, SiteTerms())
        if not any(problem.severity == "error" for problem in (*problems, *differences)):
            accepted += 1
            for value, name in dataset.labels.items():
                assert wanted.labels is not None
                says_nothing = not any(letter.isalpha() for letter in name)
                assert says_nothing or wanted.labels.get(value) == name or differences, f"seed {seed}: {value} {name!r}"
    assert accepted > count // 20


def test_any_header_is_read_or_refused(tmp_path: Path) -> None:
    fuzz_headers(tmp_path / "scan.nii.gz", 500)


def test_any_declaration_is_read_or_refused(tmp_path: Path) -> None:
    fuzz_declarations(tmp_path, 500)


@pytest.mark.long
def test_twenty_thousand_headers_are_read_or_refused(tmp_path: Path) -> None:
    fuzz_headers(tmp_path / "scan.nii.gz", 20_000)


@pytest.mark.long
def test_five_thousand_declarations_are_read_or_refused(tmp_path: Path) -> None:
    fuzz_declarations(tmp_path, 5_000)
