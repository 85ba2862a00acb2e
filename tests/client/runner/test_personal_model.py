"""A site's personal model: nothing of it leaves, it survives restarts, and its score leaves only where it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.consent.policy import PolicyError
from client.consent.site_config import SITE_FILE
from client.inference.predict import PredictOptions, Predictor
from client.runner.app_call import ask as ask_app
from client.runner.client_app import Site, SiteWeights, make_client_app
from client.runner.gradient_memory import memory_of
from client.runner.personal_model import open_personal_model
from client.training.dp_trainer import make_trainer
from common.config.federation import FederationConfig
from common.models.bundle import load_bundle
from common.models.unet3d import build_model
from common.protocol.codec import pack, unpack_answer
from common.protocol.messages import ErrorCode, Failure, Result, Task
from common.weights.encoding import Encoding, Vector, vector_of
from common.weights.layout import WeightLayout
from common.weights.part import norm_part
from common.weights.store import MemoryStore
from tests import tiny
from tests.client.runner.site import RunnerSite
from tests.client.runner.test_private_site import Purse

BUNDLE = "personal-model"
CASES = [tiny.ball(f"case-{index}", index) for index in range(4)]
NORMS, DITTO = {"method": "norms"}, {"method": "ditto", "ditto_lambda": 0.5}


class Hospital:
    """A guard that allows every task or none, and says whether the personal score may leave."""

    def __init__(self, shares: bool = True, allows: bool = True) -> None:
        self.shares = shares
        self.allows = allows
        self.counted: list[Task] = []

    def check(self, digest: str) -> None: ...
    def begin(self, task: Task) -> Callable[[], None]:
        if not self.allows:
            raise PolicyError(ErrorCode.NOT_APPROVED, "the approval is used up")
        self.counted.append(task)
        return lambda: self.counted.remove(task)

    def shares_personal_score(self) -> bool:
        return self.shares


class ChangesItsMind:
    """An observer for whose hospital the personal score may no longer leave once a training has begun."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital = hospital

    def site_started(self, round: int, site: str, steps: int) -> None: ...
    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        self.hospital.shares = False


class Place:
    """A site with its folder, opened anew as often as it is asked for."""

    def __init__(self, folder: Path, personal: dict[str, object], **values: object) -> None:
        training = {"local_steps": 2, "precision": "float32", "augmentation": None}
        self.config: FederationConfig = tiny.federation(personal=personal, training=training, **values)
        self.folder = folder
        self.weights = MemoryStore()
        torch.manual_seed(3)
        model = build_model(tiny.plan().model)
        self.layout = WeightLayout.of(model)
        self.model = self.weights.put([self.layout.flatten(model.state_dict())])

    def open(self) -> Site:
        trainer = make_trainer(self.config, tiny.plan_for(self.config), torch.device("cpu"), repeatable=True)
        own = open_personal_model(self.config, trainer, "a", self.folder / "kept", self.folder / BUNDLE)
        purse = None if trainer.privacy is None else Purse(1.0)
        seed, digest = 5, self.config.digest()
        return Site(
            "a", CASES[:3], CASES[3:], seed, digest, trainer, privacy=trainer.privacy, budget=purse, personal=own
        )

    def task(self, round_number: int, run: str = "r1", train: bool = True, upload: Encoding = "float32") -> Task:
        return Task(run, self.config.digest(), round_number, 3, train, self.model, upload=upload)

    def ask(self, task: Task, hospital: Hospital, site: Site | None = None) -> str:
        opened = site or self.open()
        app = make_client_app(lambda context: opened, SiteWeights(self.weights, self.weights), hospital)
        return ask_app(app, task.name, task, pack(task))

    def answer(self, task: Task, site: Site | None = None, shares: bool = True) -> tuple[Result, str]:
        text = self.ask(task, Hospital(shares), site)
        answer = unpack_answer(text)
        assert isinstance(answer, Result), answer
        return answer, text

    def update(self, result: Result, upload: Encoding = "float32") -> Vector:
        return vector_of(self.weights.get(result.update or ""), self.layout.size, upload)

    def kept(self, site: Site, before_round: int, run: str = "r1") -> Vector:
        assert site.personal is not None
        return site.personal.vectors.read(run, before_round).vectors["own"]


@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("privacy", [None, {"epsilon": 5, "sample_rate": 0.9}], ids=["", "private"])
def test_no_byte_of_own_norms_leaves(tmp_path: Path, upload: Encoding, privacy: object) -> None:
    place = Place(tmp_path, NORMS, privacy=privacy)
    site, part = place.open(), norm_part(place.layout)
    for round_number in (1, 2):
        result, text = place.answer(place.task(round_number, upload=upload), site)
        update = place.update(result, upload)
        assert update.any() and not part.take(update).any()
        kept = place.kept(site, round_number + 1)
        assert not (kept == part.take(vector_of(place.weights.get(place.model), place.layout.size, "float32"))).all()
        sent = place.weights.get(result.update or "").tobytes() + text.encode()
        assert all(kept[start : start + 2].tobytes() not in sent for start in range(0, kept.size, 2))


@pytest.mark.parametrize("personal", [NORMS, DITTO], ids=["norms", "ditto"])
def test_a_restart_and_a_task_that_comes_again_change_nothing(tmp_path: Path, personal: dict[str, object]) -> None:
    steady, shaken = Place(tmp_path / "a", personal), Place(tmp_path / "b", personal)
    site = steady.open()
    for round_number in (1, 2, 3):
        task = steady.task(round_number)
        expected, _ = steady.answer(task, site)
        for _ in range(2):
            found, _ = shaken.answer(task)
            assert (found.update, found.personal_dice) == (expected.update, expected.personal_dice)
    last = steady.task(4, train=False)
    assert steady.answer(last, site)[0].personal_dice == shaken.answer(last)[0].personal_dice != {}
    bundles = [load_bundle(place.folder / BUNDLE).sha256 for place in (steady, shaken)]
    assert bundles[0] == bundles[1]
    fresh, _ = steady.answer(steady.task(2, "another-run"), site)
    assert fresh.personal_dice == {}, "begins with the global model"


@pytest.mark.parametrize("personal", [NORMS, DITTO], ids=["norms", "ditto"])
def test_the_score_leaves_only_where_the_hospital_says_so(tmp_path: Path, personal: dict[str, object]) -> None:
    place = Place(tmp_path, personal)
    place.answer(place.task(1))
    told, _ = place.answer(place.task(2), shares=True)
    silent, text = place.answer(place.task(2), shares=False)
    assert set(told.personal_dice) == {1} and silent.personal_dice == {} and '"personal_dice":{}' in text
    assert told.dice == silent.dice, "the global model's as it was sent"
    about = load_bundle(place.folder / BUNDLE).provenance
    assert about["validation_dice"] == {"1": told.personal_dice[1]}
    private = Place(tmp_path / "private", personal, privacy={"epsilon": 5, "sample_rate": 0.9})
    private.answer(private.task(1))
    assert private.answer(private.task(2), shares=True)[0].personal_dice == {}, "nothing pays for it"
    assert load_bundle(private.folder / BUNDLE).provenance["mean_validation_dice"] is not None


def test_the_hospital_is_asked_after_the_training_whether_the_score_may_leave(tmp_path: Path) -> None:
    place, hospital = Place(tmp_path, NORMS), Hospital()
    place.answer(place.task(1))
    site = replace(place.open(), observer=ChangesItsMind(hospital))
    result = unpack_answer(place.ask(place.task(2), hospital, site))
    assert isinstance(result, Result) and result.personal_dice == {}


@pytest.mark.parametrize("personal", [NORMS, DITTO], ids=["norms", "ditto"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])], ids=["missing", "cut"]
)
def test_a_lost_personal_model_begins_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, personal: dict[str, object], damage: Callable[[Path], object]
) -> None:
    place, fresh = Place(tmp_path / "a", personal), Place(tmp_path / "b", personal)
    site = place.open()
    assert site.personal is not None
    place.answer(place.task(1), site)
    damage(site.personal.vectors.path("r1", 1))
    caplog.clear()
    task = replace(place.task(2), counted_last=1)
    found = [place.answer(task)[0] for _ in range(2)]
    [warning, _] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "round_0001.safetensors: " in warning and "begins again with the global one" in warning
    caplog.clear()
    expected, _ = fresh.answer(fresh.task(2))
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "nothing was lost there"
    assert {result.update for result in found} == {expected.update} and found[0].personal_dice == {}
    np.testing.assert_array_equal(place.kept(site, 3), fresh.kept(fresh.open(), 3))
    assert place.answer(replace(place.task(3), counted_last=2))[0].personal_dice != {}, "it goes on from there"


def test_neither_a_refused_task_nor_an_early_evaluation_changes_what_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path, NORMS)
    place.answer(place.task(1))
    place.answer(place.task(2))
    before = {file: file.read_bytes() for file in (tmp_path / "kept" / "r1").iterdir()}
    assert len(before) == 2
    refused = unpack_answer(place.ask(place.task(1), Hospital(allows=False)))
    assert refused == Failure(ErrorCode.NOT_APPROVED, "PolicyError")
    place.answer(place.task(1, train=False))
    assert {file: file.read_bytes() for file in (tmp_path / "kept" / "r1").iterdir()} == before


def test_what_a_site_keeps_is_read_once_the_task_is_allowed_and_a_failure_gives_it_back(tmp_path: Path) -> None:
    place, training = Place(tmp_path, NORMS), {"optimizer": "sgd"}
    memory = memory_of(tiny.federation(strategy={"name": "feddyn"}, training=training), tmp_path / "gradients", "a")
    site, lost = replace(place.open(), memory=memory), replace(place.task(2), counted_last=1)
    refused = unpack_answer(place.ask(lost, Hospital(allows=False), site))
    assert refused == Failure(ErrorCode.NOT_APPROVED, "PolicyError")
    hospital = Hospital()
    failed = unpack_answer(place.ask(lost, hospital, site))
    assert failed == Failure(ErrorCode.INTERNAL, "DamagedFileError") and hospital.counted == []


@pytest.mark.parametrize("privacy", [None, {"epsilon": 5, "sample_rate": 0.9}], ids=["", "private"])
def test_a_bundle_that_cannot_be_written_ends_no_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, privacy: object
) -> None:
    place = Place(tmp_path, NORMS, privacy=privacy)
    place.answer(place.task(1))
    (tmp_path / BUNDLE).touch()
    result, _ = place.answer(place.task(2))
    assert result.update is not None
    [error] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "the personal model is not up to date" in error and BUNDLE in error


def test_the_bundle_is_the_model_that_was_scored(tmp_path: Path) -> None:
    place = Place(tmp_path, NORMS)
    site = place.open()
    place.answer(place.task(1), site)
    assert not (tmp_path / BUNDLE).exists(), "nothing was trained yet"
    place.answer(place.task(2), site)
    bundle = load_bundle(tmp_path / BUNDLE)
    assert site.personal is not None
    weights = vector_of(place.weights.get(place.model), place.layout.size, "float32")
    expected = site.personal.method.model(weights, place.kept(site, 2))
    np.testing.assert_array_equal(place.layout.flatten(bundle.weights), expected)
    assert (bundle.provenance["site"], bundle.provenance["round"]) == ("a", 1)
    assert Predictor.open(tmp_path / BUNDLE, PredictOptions(device="cpu")).plan == bundle.plan


def test_a_real_runner_goes_on_with_its_personal_model_after_a_kill(tmp_path: Path) -> None:
    site = RunnerSite(tmp_path, 2, "personal: {method: norms}\n")
    site.start()
    try:
        found = {}
        for run, restarts in (("steady", False), ("killed", True)):
            first = site.answer(site.give(site.task(1, run=run)))
            assert isinstance(first, Result) and first.personal_dice == {}
            if restarts:
                site.kill()
                site.start()
            found[run] = site.answer(site.give(site.task(2, run=run)))
        steady, killed = found.values()
        assert isinstance(steady, Result) and isinstance(killed, Result) and steady.update == killed.update
        fresh = site.answer(site.give(site.task(2, run="fresh")))
        assert isinstance(fresh, Result) and fresh.update != steady.update, "it would show"
        assert steady.personal_dice == {}, "not shared"
        assert site.entries("sent")[-1].details["fields"]["personal_dice"] == {}
        (site.state.path / SITE_FILE).write_text("privacy: {share_personal_score: true}\n")
        refused = site.answer(site.give(site.task(3, run="killed")))
        assert isinstance(refused, Failure), "what was approved shared less"
        assert load_bundle(site.state.path / BUNDLE).provenance["site"] == "north"
    finally:
        site.kill()
