"""What child processes do: check, list, segment; and what is told of those that fail."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from client.runner.app_call import BadWeightsError, ReceivedWeights
from client.state_folder import StateFolder
from client.web import segmenting, work
from client.web.checks import request_of
from client.web.jobs import BusyError, Jobs
from client.web.pictures import COLOURS, slice_of
from client.web.place import Place
from common.config.federation import load_federation
from common.errors import ConfigError, DamagedFileError, DataError
from common.imaging.phantoms.dataset import PHANTOM_LABELS, write_phantom_dataset
from common.metrics import dice
from common.models.unet3d import build_model
from common.planning.resolve import plan_from_config
from common.weights.encoding import encode_vector
from common.weights.layout import WeightLayout
from common.weights.store import FileStore
from tests.client.consent.test_disclosure import VALUES, write_kit

CASES = 4
ASKED = VALUES | {"labels": PHANTOM_LABELS, "channels": ["synthetic"], "preprocessing": {"spacing": "keep"}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A site with four phantoms, one of which has a label that nobody wants."""
    folder = tmp_path_factory.mktemp("site")
    write_kit(folder / "kit", **ASKED)
    StateFolder(folder / "state").make()
    data = write_phantom_dataset(folder / "data", [CASES], seed=3, shape=(16, 20, 12))
    odd = sorted((data / "labelsTr").glob("*.nii.gz"))[0]
    image = nib.load(odd)
    label = np.asarray(image.dataobj).copy()
    label[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(label, image.affine, image.header), odd)
    return Place(folder / "kit", folder / "state", folder / "ledger.jsonl", data)


def nothing(content: Mapping[str, Any]) -> None:
    pass


def receive(place: Place, seed: int) -> str:
    """A model that came from the server, as a runner keeps it; its digest."""
    plan = plan_from_config(load_federation(place.kit / "federation.yaml"))
    torch.manual_seed(seed)
    network = build_model(plan.model)
    vector = WeightLayout.of(network).flatten(network.state_dict())
    inbox = FileStore(place.state / "inbox")
    digest = inbox.put(part for _, part in encode_vector(vector, "float32"))
    ReceivedWeights(inbox.folder, StateFolder(place.state).global_model).get(digest)
    inbox.path(digest).unlink()
    return digest


def test_a_check_draws_the_odd_cases(site: Place, tmp_path: Path) -> None:
    told: list[Any] = []
    found = work.check(request_of(site) | {"folder": str(tmp_path)}, told.append)
    assert told[-1] == {"progress": [CASES, CASES]}
    assert not found["usable"]
    (picture,) = found["pictures"]
    assert picture["case"] == found["problems"][0]["case"]
    pixels = imread(tmp_path / f"{picture['number']}.png")
    case = next(case for case in found["cases"] if case["name"] == picture["case"])
    assert pixels.shape[:2] == (case["shape"][1], case["shape"][0])
    assert json.loads(json.dumps(found)) == found
    red, _, blue = pixels[-1, -1, :3]
    assert red > blue, "the slice is the one with the label that nobody declared"


def test_slices_are_as_radiologists_see_them() -> None:
    image = np.zeros((4, 6, 2), np.float32)
    image[0, 5, 1] = 1.0  # left in the array, so the patient's left; front
    label = np.zeros(image.shape, np.uint8)
    label[3, 0, 1] = 1  # the patient's right; back
    picture = slice_of(image, label, 1)
    assert picture.shape == (6, 4, 3)
    assert picture[0, 3].tolist() == [255, 255, 255]
    assert picture[5, 0].tolist() == (COLOURS[1] // 2).tolist()


def test_what_is_segmented_is_a_validation_case_and_its_files_are_as_written(site: Place, tmp_path: Path) -> None:
    names = work.cases(request_of(site), nothing)
    assert len(names) == 1
    receive(site, 1)
    digest = receive(site, 2)
    assert [file.name for file in StateFolder(site.state).global_model.iterdir()] == [digest], "only the last"
    request = request_of(site) | {"case": names[0], "folder": str(tmp_path)}
    found = work.segment(request, nothing)
    assert found["model"] == digest
    image, truth, prediction = (
        np.asarray(nib.load(tmp_path / name).dataobj)
        for name in (segmenting.IMAGE, segmenting.TRUTH, segmenting.PREDICTION)
    )
    assert site.data is not None
    original = nib.load(site.data / "labelsTr" / f"{names[0]}.nii.gz")
    assert np.array_equal(truth, np.asarray(original.dataobj))
    assert image.shape == truth.shape == prediction.shape
    scores = {name: dice(prediction == value, truth == value) for value, name in PHANTOM_LABELS.items()}
    assert found["dice"] == pytest.approx(scores)
    assert (tmp_path / segmenting.SHEET).stat().st_size > 100
    with pytest.raises(DataError, match="list them again"):
        work.segment(request | {"case": "../../etc/passwd"}, nothing)


def test_models_that_are_missing_or_damaged_are_named(site: Place, tmp_path: Path) -> None:
    place = dataclasses.replace(site, state=tmp_path / "state")
    StateFolder(place.state).make()
    assert segmenting.current_model(place.state) is None
    digest = receive(place, 1)
    file = StateFolder(place.state).global_model / digest
    from client.consent.disclosure import read_request

    asked = read_request(place.kit)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedFileError, match="next round"):
        segmenting.read_model(asked, file)
    with pytest.raises(BadWeightsError):
        ReceivedWeights(file.parent, tmp_path / "nowhere").get(digest)
    assert not (tmp_path / "nowhere").exists()


def test_without_data_there_is_nothing_to_do(site: Place) -> None:
    with pytest.raises(ConfigError, match="--data DIR"):
        request_of(dataclasses.replace(site, data=None))


def test_only_one_child_works_at_a_time_and_its_problem_is_told(site: Place, tmp_path: Path) -> None:
    made = Jobs(tmp_path / "page.log")
    made.start("cases", **request_of(site) | {"data": str(tmp_path / "nowhere")})
    with pytest.raises(BusyError, match="still at work"):
        made.start("check")
    join_followers()
    found = made.last("cases")
    assert found is not None and found.has_ended and found.result is None
    assert "nowhere" in found.problem
    made.require_free()


@pytest.mark.long
def test_a_child_answers_what_the_same_work_answers_here(site: Place, tmp_path: Path) -> None:
    made = Jobs(tmp_path / "page.log")
    made.start("cases", **request_of(site))
    join_followers()
    found = made.last("cases")
    assert found is not None and found.problem == ""
    assert found.result == work.cases(request_of(site), nothing)


def test_a_child_that_is_killed_is_told(site: Place, tmp_path: Path) -> None:
    made = Jobs(tmp_path / "page.log")
    made.start("cases", **request_of(site))
    made.stop()
    join_followers()
    found = made.last("cases")
    assert found is not None and found.has_ended and "ended with status -9" in found.problem
    made.require_free()


def join_followers() -> None:
    for thread in threading.enumerate():
        if thread.name == "page-work":
            thread.join(120)
