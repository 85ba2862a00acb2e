"""What the ledger tells its readers, and what it says of a federation beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from client.consent.policy import PolicyError
from client.consent.site_config import SiteConfig, SitePrivacy
from client.ledger.account import Account
from client.ledger.budget import LedgerBudget
from client.ledger.ledger import Ledger, Witness
from client.ledger.statement import HOW_TO_READ, Folder, as_text, limit_of, view
from client.runner.site_split import SiteDataError
from client.site.budget_check import NEW_PATIENTS, check_privacy, find_people, outlook
from common.config.federation import FederationConfig, as_json
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.plan.privacy import PrivacyPlan, Spend
from common.privacy.calibration import calibrate
from tests import tiny
from tests.client.ledger.test_ledger import DELTA, ROUND, TRAINING, VALIDATION, budget, of, patients

LIMIT = SitePrivacy(max_epsilon=8, delta=DELTA)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    """Two rounds of one federation, and one of another that has one more patient and scores on another."""
    path = tmp_path / "ledger.jsonl"
    for number in (1, 2):
        budget(path, patients("a", "b")).spend("r1", number, ROUND)
    budget(path, patients("a", "b", "c"), patients("w"), name="second").spend("r2", 1, ROUND)
    return Ledger(path).read()


def test_every_dataset_and_every_use(account: Account) -> None:
    content = view(account, LIMIT)
    assert json.loads(as_json(content)) == content
    assert [item["patients"] for item in content["datasets"]] == [2, 1, 3, 1]
    two, scored, three, _ = content["datasets"]
    assert two["epsilon"] == three["epsilon"] == of(*[TRAINING] * 3), "who was there twice pays for both"
    assert scored["epsilon"] == of(VALIDATION, VALIDATION)
    assert two["left"] == 8 - two["epsilon"]
    [use] = two["uses"]
    assert (use["federation"], use["runs"], use["rounds"], use["steps"]) == ("first", 1, 2, 20)
    assert use["epsilon"] == of(TRAINING, TRAINING)
    assert use["first"] < use["last"]


def test_the_text_says_it_in_words(account: Account) -> None:
    content = {"ledger": "/srv/ledger.jsonl"} | view(account, LIMIT)
    text = as_text(content, 10_000)
    assert "PRIVACY SPENT" in text and "/srv/ledger.jsonl" in text
    assert "no patient may spend more than epsilon 8 at delta 1e-05, all federations together" in text
    two = content["datasets"][0]
    assert f"epsilon {two['epsilon']:.2f} at delta 1e-05; {two['left']:.2f} of 8 are left" in text
    assert "3 patients." in text and "1 patient." in text
    assert text.count("trained on") == 2 and text.count("scored on") == 2
    assert text.endswith(HOW_TO_READ)


def test_without_a_limit_nothing_is_left_over(account: Account) -> None:
    content = {"ledger": "l"} | view(account, SitePrivacy())
    assert content["datasets"][0]["left"] is None
    text = as_text(content, 10_000)
    assert "Limit: none; to set one, use privacy.max_epsilon" in text and "are left" not in text


def test_only_the_patients_of_a_folder(account: Account) -> None:
    folder = Folder("scans", patients("c", "new"))
    content = {"ledger": "l"} | view(account, LIMIT, folder)
    assert [item["patients"] for item in content["datasets"]] == [3]
    data = content["data"]
    assert (data["patients"], data["known"], data["epsilon"]) == (2, 1, of(TRAINING))
    assert data["groups"] == [{"epsilon": 0.0, "patients": 1}, {"epsilon": of(TRAINING), "patients": 1}]
    text = as_text(content, 10_000)
    assert (
        f"In scans: 2 patients, 1 of them in this ledger (1 at epsilon 0.00, 1 at epsilon {of(TRAINING):.2f})" in text
    )
    assert "Nothing was spent on these patients." in as_text(
        {"ledger": "l"} | view(account, LIMIT, Folder("s", [])), 80
    )


def test_an_empty_ledger_says_so() -> None:
    assert "Nothing was spent." in as_text({"ledger": "l"} | view(Account(), LIMIT))


def test_the_limit_is_the_site_files_or_the_last_rounds(account: Account, tmp_path: Path) -> None:
    assert limit_of(account, LIMIT) == LIMIT
    assert limit_of(account, None) == SitePrivacy(delta=DELTA)
    assert limit_of(Account(), None) == SitePrivacy()
    path = tmp_path / "limited.jsonl"
    budget(path, patients("a"), limit=5).spend("r", 1, ROUND)
    assert limit_of(Ledger(path).read(), None) == SitePrivacy(max_epsilon=5, delta=DELTA)


def test_next_to_nothing_costs_no_less_than_nothing() -> None:
    assert 0 <= of(Spend("training", 1e4, 0.001, 1)) < 0.01


# --- before a federation ----------------------------------------------------------------------------------------------


def federation(epsilon: float = 8, rounds: int = 6, **values: object) -> FederationConfig:
    content: dict[str, object] = {"privacy": {"epsilon": epsilon, "delta": DELTA}, "training": {"local_steps": 5}}
    return tiny.federation(rounds=rounds, **(content | values))


def planned(config: FederationConfig) -> tuple[FederationConfig, PrivacyPlan]:
    """With the noise that it asks for."""
    assert config.privacy is not None
    return config, calibrate(config.privacy, config.rounds, config.training.local_steps)


def test_a_federation_within_the_limit_fits() -> None:
    found = outlook(*planned(federation(8)), LIMIT, Account(), NEW_PATIENTS)
    assert (found.spent, found.fits, found.rounds_left) == (0, True, 6)
    assert 7.8 < found.after <= 8
    assert "the limit is 8" in str(found)


def test_a_federation_beyond_the_limit_is_told_when_it_stops() -> None:
    found = outlook(*planned(federation(10)), LIMIT, Account(), NEW_PATIENTS)
    assert not found.fits and 0 < found.rounds_left < 6
    assert f"the rest lasts for {found.rounds_left} of 6 rounds" in str(found)
    assert found.as_values()["rounds_left"] == found.rounds_left


def test_a_site_serves_as_many_rounds_as_it_was_told(tmp_path: Path) -> None:
    config = federation(10)
    assert config.privacy is not None
    plan = calibrate(config.privacy, 6, 5)
    assert plan.validation is not None
    people = {"training": patients("a"), "validation": patients("v")}
    site = LedgerBudget(Ledger(tmp_path / "ledger.jsonl"), config, people, SiteConfig(privacy=LIMIT))  # type: ignore[arg-type]
    told = outlook(config, plan, LIMIT, Account(), NEW_PATIENTS).rounds_left
    for number in range(told):
        site.spend("r", number + 1, [plan.training, plan.validation])
    with pytest.raises(PolicyError):
        site.spend("r", told + 1, [plan.training, plan.validation])


def test_without_a_limit_everything_fits() -> None:
    found = outlook(*planned(federation(50)), SitePrivacy(), Account(), NEW_PATIENTS)
    assert found.fits and "sets no limit over all federations" in str(found)
    assert "epsilon 50 at delta 1e-05 for this one" in str(found)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [6], seed=0, shape=(32, 32, 32))


def test_the_check_before_the_start(scans: Path, tmp_path: Path) -> None:
    """Fits, fits no more after half of it, is refused with a ledger that somebody replaced."""
    state, ledger = tmp_path / "state", tmp_path / "ledger.jsonl"
    state.mkdir()
    (state / "site.yaml").write_text("privacy: {max_epsilon: 8}\n")
    config = federation(8)
    item = check_privacy(state, *planned(config), "north", scans, ledger)
    assert (item.name, item.severity) == ("privacy", "ok"), item
    assert not ledger.exists(), "looking writes nothing"
    people = find_people(config, SiteConfig(), "north", scans, None, Ledger(ledger))
    assert config.privacy is not None
    paid = calibrate(config.privacy, 6, 5).costs(3, 4)
    LedgerBudget(Ledger(ledger, Witness(state)), config, people, SiteConfig()).spend("r", 1, paid)
    item = check_privacy(state, *planned(config), "north", scans, ledger)
    assert item.severity == "warning" and "of 6 rounds, then this site stops" in item.text
    ledger.unlink()
    item = check_privacy(state, *planned(config), "north", scans, ledger)
    assert item.severity == "error" and str(ledger) in item.text


def test_patients_that_cannot_be_told_apart_are_an_error(scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(scans, folder)
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(min((folder / kind).glob("*.nii.gz")), folder / kind / "again.nii.gz")
    (folder / "dataset.json").unlink(missing_ok=True)
    item = check_privacy(tmp_path, *planned(federation()), "north", folder, tmp_path / "ledger.jsonl")
    assert item.severity == "error" and "same image" in item.text
    item = check_privacy(tmp_path, *planned(federation()), "north", tmp_path / "nowhere", tmp_path / "ledger.jsonl")
    assert item.severity == "error" and "nowhere" in item.text
    (tmp_path / "site.yaml").write_text("validation_cases: [nobody]\n")
    item = check_privacy(tmp_path, *planned(federation()), "north", scans, tmp_path / "ledger.jsonl")
    assert item.severity == "error" and "nobody" in item.text
    with pytest.raises(SiteDataError):
        find_people(
            federation(), SiteConfig(validation_cases=("nobody",)), "north", scans, None, Ledger(tmp_path / "l")
        )
