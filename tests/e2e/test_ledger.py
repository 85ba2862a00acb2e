"""The ledger on the command line, as a data-protection officer uses it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from common.audit import head_of
from common.imaging.phantoms.dataset import write_phantom_dataset
from tests.client.consent.test_disclosure import write_kit
from tests.client.ledger.test_ledger import ROUND, budget, edit_number, of, patients
from tests.e2e.network_federation import Federation
from tests.e2e.test_consent import done, fedvox, refused


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    for number in (1, 2):
        budget(path, patients("a", "b"), limit=8).spend("r", number, ROUND)
    return path


def test_it_is_shown_and_proven(ledger: Path) -> None:
    text = done("ledger", "--verify", FEDVOX_LEDGER=str(ledger))
    assert "Dataset" in text and "2 patients" in text and "of 8 are left" in text and "first" in text
    assert "The ledger is intact: 4 entries" in text
    content = json.loads(done("ledger", "--ledger", ledger, "--json", "--verify"))
    assert content["datasets"][0]["epsilon"] == of(*[ROUND[0]] * 2)
    assert content["verified"]["head"] == json.loads(head_of(ledger).read_text())["hash"]
    assert content["limit"] == {"max_epsilon": 8, "delta": 1e-5}


@pytest.mark.parametrize("option", [["--verify"], []])
def test_a_broken_one_is_refused(ledger: Path, option: list[str]) -> None:
    edit_number(ledger)
    assert "was edited" in refused("ledger", "--ledger", ledger, *option, status=1)


def test_no_ledger_is_no_proof(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.jsonl"
    assert "Nothing was spent." in done("ledger", "--ledger", nowhere)
    assert "there is no ledger" in refused("ledger", "--ledger", nowhere, "--verify", status=1)
    assert not nowhere.exists()


def test_the_kit_gives_the_limit_and_remembers_the_ledger(ledger: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit)
    state = kit / "state"
    state.mkdir()
    (state / "site.yaml").write_text("privacy: {max_epsilon: 5}\n")
    budget(ledger, patients("a"), state=state).spend("r", 3, ROUND)
    text = done("ledger", "--ledger", ledger, "--kit", kit, "--verify")
    assert "more than epsilon 5" in text and "matches this site's records" in text
    other = tmp_path / "other.jsonl"
    budget(other, patients("b")).spend("r", 1, ROUND)
    assert "has 3 entries, but this site has seen" in refused("ledger", "--ledger", other, "--kit", kit, status=1)


def test_a_lost_ledger_is_begun_anew_by_a_person(ledger: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    write_kit(kit)
    (kit / "state").mkdir()
    budget(ledger, patients("a"), state=kit / "state").spend("r", 3, ROUND)
    ledger.unlink()
    assert "--recover" in refused("ledger", "--ledger", ledger, "--kit", kit, status=1)
    command = ["ledger", "--ledger", ledger, "--kit", kit, "--recover"]
    assert "--reason" in refused(*command, "--spent", "8@5e-6")
    reason = ["--reason", "disk failed", "--user", "Dr. Example"]
    assert "--spent 8" in refused(*command, "--spent", "8", *reason)
    assert "prove" in refused(*command, "--spent", "0.1@5e-6", *reason, "--yes")
    assert "needs confirmation" in refused(*command, "--spent", "8@5e-6", *reason)
    assert not ledger.exists()
    text = done(*command, "--spent", "8@5e-6", *reason, "--yes")
    assert "is assumed to have spent: epsilon 8 at delta 5e-06" in text and "Recovered" in text
    text = done("ledger", "--ledger", ledger, "--kit", kit, "--verify")
    assert "RECOVERED" in text and "Dr. Example" in text and "matches this site's records" in text
    assert "there is nothing to recover" in refused(*command, "--spent", "8@5e-6", *reason, "--yes")
    assert "--reason: is for --recover" in refused("ledger", "--reason", "why")


@pytest.mark.parametrize(("typed", "status"), [("recover", 0), ("yes", 1), ("", 1)])
def test_a_person_is_asked_in_a_terminal(tmp_path: Path, typed: str, status: int) -> None:
    ledger = tmp_path / "ledger.jsonl"
    command = ["ledger", "--ledger", ledger, "--recover", "--spent", "everything", "--reason", "lost"]
    master, slave = pty.openpty()
    try:
        os.write(master, f"{typed}\n".encode())
        process = subprocess.run(
            [sys.executable, "-m", "client.cli", *map(str, command)], stdin=slave, capture_output=True, text=True
        )
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == status, process.stderr
    assert "Type recover to continue" in process.stdout
    assert ledger.exists() == (status == 0)


def test_only_the_patients_of_a_folder(ledger: Path, tmp_path: Path) -> None:
    scans = write_phantom_dataset(tmp_path / "scans", [3], seed=0, shape=(32, 32, 32))
    text = " ".join(done("ledger", "--ledger", ledger, "--data", scans).split())
    assert "3 patients, 0 of them in this ledger" in text
    assert "Nothing was spent on these patients." in text
    assert "nowhere" in refused("ledger", "--ledger", ledger, "--data", tmp_path / "nowhere", status=1)


def test_help_shows_an_example() -> None:
    text = fedvox("ledger", "--help").stdout
    assert "fedvox-client ledger --kit kit --data scans --verify" in text


def test_review_says_what_a_federation_costs_and_approve_heeds_the_site(tmp_path: Path) -> None:
    kit, ledger = tmp_path / "kit", tmp_path / "ledger.jsonl"
    write_kit(kit, privacy={"epsilon": 16})
    (kit / "state").mkdir()
    (kit / "state" / "site.yaml").write_text("privacy: {required: true, max_epsilon: 8}\n")
    text = done("review", "--kit", kit, "--ledger", ledger)
    assert "DIFFERENTIAL PRIVACY for every patient: epsilon 16" in text
    assert "Patients who have not taken part before: the whole federation brings a patient" in text
    assert "then this site stops" in text
    content = json.loads(done("review", "--kit", kit, "--ledger", ledger, "--json"))
    assert content["site_decisions"]["privacy"]["max_epsilon"] == 8
    done("approve", "--kit", kit)
    write_kit(kit)
    assert "requires differential privacy" in done("review", "--kit", kit, "--ledger", ledger)
    assert "requires differential privacy" in refused("approve", "--kit", kit, status=2)


def test_preflight_looks_into_the_ledger_that_it_is_given(tmp_path: Path) -> None:
    """The server is not there, which is a warning; a ledger that is gone keeps the site from starting."""
    made = Federation(tmp_path, settings=("privacy={epsilon: 6}",))
    ledger, kit = tmp_path / "book" / "ledger.jsonl", made.kits / "sites" / "north"
    options = ["--kit", kit, "--data", made.data("north"), "--ledger", ledger, "--no-cache"]
    (kit / "state").mkdir()
    (kit / "state" / "site.yaml").write_text("privacy: {required: true, max_epsilon: 5}\n")
    lines = done("preflight", *options).splitlines()
    [privacy] = [line for line in lines if " privacy: " in line]
    assert privacy.startswith("warning") and "of 3 rounds, then this site stops" in privacy
    budget(ledger, patients("a"), state=kit / "state").spend("r", 1, ROUND)
    ledger.unlink()
    looked = fedvox("preflight", *options)
    assert looked.returncode == 1
    [privacy] = [line for line in looked.stdout.splitlines() if " privacy: " in line]
    assert privacy.startswith("error") and "is gone" in privacy
