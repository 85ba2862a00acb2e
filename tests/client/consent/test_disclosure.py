"""The consent document says what the protocol does, and goes on saying it when the protocol changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import client.consent.disclosure
import common.protocol.codec
from client.consent.disclosure import (
    MEANINGS,
    NEVER_SENT,
    OCCASIONS,
    ConsentError,
    Request,
    as_text,
    digest_of_fields,
    document,
    fields_that_leave,
    read_request,
)
from client.consent.privacy_terms import (
    NO_PRIVACY,
    NOT_CALLED_BACK,
    NOT_COVERED,
    ON_A_GRID,
    PAID,
    PRIVATE_MEANINGS,
    SEVERAL_SCANS,
)
from common.config.federation import FederationConfig, as_json
from common.config.privacy import PrivacyConfig
from common.errors import ConfigError
from common.models.unet3d import build_model
from common.planning.resolve import plan_from_config
from common.privacy.calibration import calibrate
from common.protocol.codec import Answer, Question, WeightLayout
from common.protocol.messages import ErrorCode, Failure, Heartbeat, Result, SiteInfo
from common.weights.encoding import encoded_bytes
from tests import kits, tiny

VALUES: dict[str, Any] = {
    "description": "A study of balls.",
    "labels": {1: "ball"},
    "channels": ["t1"],
    "preprocessing": {"spacing": [1, 1, 2]},
    "model": {"channels": [8, 16], "groups": 4, "patch_size": [16, 16, 16]},
    "training": {"local_steps": 7},
    "transport": {"upload": "int8"},
}


def write_kit(folder: Path, **values: Any) -> FederationConfig:
    """The files of a site's kit that say what it wants."""
    federation = tiny.federation(**(VALUES | values))
    kits.write_kit(folder, federation, plan_from_config(federation))
    return federation


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    write_kit(tmp_path)
    return read_request(tmp_path)


def test_every_field_that_leaves_has_a_meaning() -> None:
    listed = {(field.message, field.name) for field in fields_that_leave()}
    for message in (SiteInfo, Heartbeat, Result, Failure):
        assert {(message.__name__, field.name) for field in dataclasses.fields(message)} <= listed
    assert all(len(field.meaning) > 10 for field in fields_that_leave())


def test_every_message_of_the_protocol_is_known_to_go_one_way() -> None:
    from_site = {*get_args(Answer), Heartbeat}
    # A new message must be explained to the hospitals if it comes from them.
    assert set(get_args(Question)) | from_site == set(common.protocol.codec._KINDS)
    assert from_site == set(MEANINGS) == set(OCCASIONS)


@pytest.mark.parametrize("change", [lambda known: known.pop("steps"), lambda known: known.update(shoe_size="size")])
def test_a_field_without_meaning_is_an_error(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, str]], object]
) -> None:
    meanings = dict(MEANINGS[Result])
    change(meanings)
    monkeypatch.setattr(client.consent.disclosure, "MEANINGS", {**MEANINGS, Result: meanings})
    with pytest.raises(ConsentError, match="Result"):
        fields_that_leave()


def test_more_fields_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest_of_fields()

    @dataclasses.dataclass
    class Extra:
        age: int

    monkeypatch.setattr(client.consent.disclosure, "MEANINGS", {**MEANINGS, Extra: {"age": "years"}})
    assert digest_of_fields() != before


def test_every_part_of_a_federation_file_was_considered() -> None:
    shown = {"name", "description", "labels", "channels", "modality", "rounds", "strategy", "early_stop"}
    shown |= {
        "preprocessing",
        "model",
        "training",
        "transport",
        "network",
        "privacy",
        "initial_model_sha256",
        "personal",
    }
    # The place where a model lies at the coordinator; its hash is shown.
    of_no_matter_to_a_site = {"seed", "simulation", "initial_model"}
    # A new part must be shown by ``document`` or, if it says nothing to a hospital, be listed here.
    assert set(FederationConfig.model_fields) <= shown | of_no_matter_to_a_site


def test_the_document_says_what_will_be_done(request_: Request) -> None:
    content = document(request_)
    assert content["digest"] == request_.federation.digest()
    assert (content["site"], content["server"]) == ("north", "coordinator.example:9443")
    assert content["work"]["rounds"] == 3
    assert content["work"]["local_steps"] == 7
    size = WeightLayout.of(build_model(request_.plan.model)).size
    update = content["sent_back"]["update"]
    assert (update["values"], update["encoding"]) == (size, "int8")
    assert update["bytes_per_round"] == encoded_bytes(size, "int8")
    assert content["configuration"] == request_.federation.model_dump(mode="json")
    assert json.loads(as_json(content)) == content


def test_the_text_leaves_nothing_out(request_: Request) -> None:
    text = as_text(document(request_), 10_000)
    for field in fields_that_leave():
        assert f"  {field.name} " in text
        assert field.meaning in text
    for sentence in (*NEVER_SENT, "NONE: this federation does not use differential privacy", "A study of balls."):
        assert sentence in text
    for code in ErrorCode:
        assert code.name.lower().replace("_", "-") in text
    for part in ("3 rounds", "7 steps", "ball (label 1)", "1 x 1 x 2 mm", "int8", "coordinator.example:9443"):
        assert part in text
    assert text.endswith(f"Digest: {request_.federation.digest()}")


def test_the_text_says_what_labels_mean(tmp_path: Path) -> None:
    write_kit(tmp_path, labels={1: {"name": "ball", "code": ["SCT", 113676009, "Round shape"]}})
    assert "To segment ball (label 1, SCT 113676009 Round shape)." in as_text(document(read_request(tmp_path)), 10_000)


NORMS, DITTO = {"method": "norms"}, {"method": "ditto", "ditto_lambda": 0.5, "steps": 9}


@pytest.mark.parametrize(
    ("personal", "private", "told"),
    [
        (NORMS, False, ("the update has zeros in their places", "only if privacy.share_personal_score is true")),
        (NORMS, True, ("no privacy budget pays for it",)),
        (DITTO, False, ("9 steps a round", "ditto_lambda 0.5", "only if privacy.share_personal_score is true")),
        (DITTO, True, ("It is trained without noise", "no privacy budget pays for it")),
    ],
)
def test_the_text_says_what_a_personal_model_is_and_that_it_stays(
    tmp_path: Path, personal: dict[str, object], private: bool, told: tuple[str, ...]
) -> None:
    write_kit(tmp_path, personal=personal, privacy=PRIVATE if private else None)
    text = as_text(document(read_request(tmp_path)), 10_000)
    for sentence in ("for fedvox-client predict and evaluate, and never leaves", *told):
        assert sentence in text


def test_without_personal_models_the_text_has_no_word_on_them(request_: Request) -> None:
    content = document(request_)
    assert content["work"]["personal"] == [] and "personal-model" not in as_text(content)


PRIVATE = {"epsilon": 3, "delta": 1e-6, "sample_rate": 0.25, "max_grad_norm": 0.5}


def test_the_text_says_what_privacy_there_is_and_what_not(tmp_path: Path) -> None:
    federation = write_kit(tmp_path, privacy=PRIVATE)
    content = document(read_request(tmp_path))
    assert federation.privacy is not None
    plan = calibrate(federation.privacy, 3, 7)
    assert plan.validation is not None
    terms = content["privacy"]
    assert (terms["epsilon"], terms["delta"], terms["max_grad_norm"]) == (3, 1e-6, 0.5)
    assert (terms["training_noise"], terms["validation_noise"]) == (
        plan.training.noise_multiplier,
        plan.validation.noise_multiplier,
    )
    assert json.loads(as_json(content)) == content
    text = as_text(content, 10_000)
    assert NO_PRIVACY not in text
    assert "epsilon 3, delta 1e-06" in text and "20.1 times as likely" in text
    assert "In each of 21 steps, every patient takes part with probability 0.25" in text
    assert f"Gaussian noise of {plan.training.noise_multiplier:.3g} times that length" in text
    for sentence in (*NOT_COVERED, SEVERAL_SCANS, PAID, ON_A_GRID, NOT_CALLED_BACK):
        assert sentence in text
    for meaning in PRIVATE_MEANINGS.values():
        assert meaning in text
    assert "one patch of each patient drawn (25 % of your patients on average)" in text


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"training": {"validate_local": 1}}, "After training in every round, it also scores its own model"),
        ({}, "After training in rounds 5, 10, 15 and so on, it also scores its own model, as part of the training. A"),
        ({"training": {"validate_local": 0}}, ""),
        ({"privacy": PRIVATE}, ""),
    ],
)
def test_the_document_says_when_a_site_scores_its_own_model(
    tmp_path: Path, values: dict[str, object], told: str
) -> None:
    write_kit(tmp_path, **values)
    text = as_text(document(read_request(tmp_path)), 10_000)
    assert ("scores its own model" in text) == bool(told) and told in text


def test_a_large_delta_is_warned_of(tmp_path: Path) -> None:
    write_kit(tmp_path, privacy=PRIVATE | {"delta": 0.009})
    text = as_text(document(read_request(tmp_path)), 10_000)
    assert "WARNING: delta 0.009 is large. To a hospital with more than 111 patients" in text


def test_the_text_follows_the_settings_of_privacy(tmp_path: Path) -> None:
    write_kit(tmp_path, privacy=PRIVATE | {"validation": "off", "patches_per_patient": 4})
    text = as_text(document(read_request(tmp_path)), 10_000)
    assert "No scores of your validation patients are sent" in text
    assert "always empty: this federation sends no scores" in text
    assert "4 patches of each patient drawn" in text


def test_adaptive_clipping_is_shown_with_the_noise_that_is_added(tmp_path: Path) -> None:
    federation = write_kit(tmp_path, privacy=PRIVATE | {"adaptive_clipping": {"count_noise": 2}})
    assert federation.privacy is not None
    total = calibrate(federation.privacy, 3, 7).training.noise_multiplier
    text = as_text(document(read_request(tmp_path)), 10_000)
    added = (total**-2 - 4.0**-2) ** -0.5
    assert "which adapts to a noised count" in text and f"Gaussian noise of {added:.3g} times that length" in text


def test_meanings_under_privacy_are_of_fields_that_there_are() -> None:
    assert set(PRIVATE_MEANINGS) <= {field.name for field in fields_that_leave()}
    names = [(field.message, field.name) for field in fields_that_leave()]
    private = fields_that_leave(PrivacyConfig.model_validate(PRIVATE))
    assert [(field.message, field.name) for field in private] == names, "an approval covers the same fields"


def test_a_given_model_and_a_part_that_is_trained_are_shown(tmp_path: Path) -> None:
    write_kit(
        tmp_path,
        initial_model="/models/phantoms",
        initial_model_sha256="ab" * 32,
        training={"local_steps": 7, "trainable": "head"},
    )
    text = as_text(document(read_request(tmp_path)), 10_000)
    assert f"starting from a given model (SHA-256 {'ab' * 32})" in text
    assert "trains part of it (head) for 7 steps" in text


@pytest.mark.parametrize("width", [60, 100])
def test_the_text_fits_the_terminal(request_: Request, width: int) -> None:
    lines = as_text(document(request_), width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("Digest")) <= width


def test_a_coordinator_cannot_steer_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="printable"):
        tiny.federation(**VALUES | {"labels": {1: "ball\x1b]0;x\x07\u202e"}})
    write_kit(tmp_path, description="a\x1b[2Jb\nPrivacy\n  - Yes.")
    text = as_text(document(read_request(tmp_path)))
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert text.count("\nPrivacy\n") == 1


def _other_federation(kit: Path) -> None:
    (kit / "federation.yaml").write_text(tiny.federation(rounds=4, **VALUES).resolved())


def _other_plan(kit: Path) -> None:
    (kit / "plan.json").write_text((kit / "plan.json").read_text().replace('"ball"', '"bone"'))


def _cut_plan(kit: Path) -> None:
    (kit / "plan.json").write_text((kit / "plan.json").read_text()[:-20])


def _no_plan(kit: Path) -> None:
    (kit / "plan.json").unlink()


def _no_kit(kit: Path) -> None:
    (kit / "kit.yaml").unlink()


def _server_kit(kit: Path) -> None:
    kits.change_kit(kit, role="server", site=None)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_other_federation, "is not the federation named in kit.yaml"),
        (_other_plan, "does not follow from federation.yaml"),
        (_cut_plan, "plan.json"),
        (_no_plan, "plan.json"),
        (_no_kit, "is not a kit"),
        (_server_kit, "is a server kit"),
    ],
)
def test_a_kit_that_contradicts_itself_is_refused(tmp_path: Path, damage: Callable[[Path], None], problem: str) -> None:
    write_kit(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=problem):
        read_request(tmp_path)


@pytest.mark.parametrize(
    ("min_sites", "consequence"),
    [(1, "with your update alone"), (2, "can then work out yours from the next model"), (3, None)],
)
def test_few_sites_are_named_with_their_consequence(tmp_path: Path, min_sites: int, consequence: str | None) -> None:
    write_kit(tmp_path, strategy={"min_sites": min_sites})
    text = " ".join(as_text(document(read_request(tmp_path))).split())
    assert (consequence or f"A round counts if {min_sites} sites or more answer with an update.") in text
    assert ("work out" in text or "read it off" in text) == (min_sites < 3)


def test_epochs_are_named_with_the_most_steps(tmp_path: Path) -> None:
    write_kit(tmp_path, training={"local_epochs": 1.5, "local_steps": 30})
    text = " ".join(as_text(document(read_request(tmp_path))).split())
    assert "for as many steps as draw 1.5 patches for every scan, at most 30, with" in text


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        ({"name": "fedavg"}, "The server makes the next model from the updates by fedavg."),
        ({"name": "fedprox", "proximal_mu": 0.5}, "by fedprox (proximal_mu 0.5). Your site adds its proximal term"),
        ({"name": "feddyn"}, "by feddyn (feddyn_alpha 0.1). Your site corrects its steps by what it remembers"),
        ({"name": "scaffold"}, "(server_learning_rate 1). Your site corrects its steps by the difference"),
    ],
)
def test_the_algorithm_is_named(tmp_path: Path, algorithm: dict[str, object], sentence: str) -> None:
    write_kit(tmp_path, strategy={"min_sites": 3} | algorithm, training={"optimizer": "sgd"})
    assert sentence in " ".join(as_text(document(read_request(tmp_path))).split())
