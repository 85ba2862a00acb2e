"""Patients by identifier: the budget follows them, whatever happens to their scans."""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.consent.site_config import load_site_config
from client.ledger.account import Account
from client.ledger.identifiers import Identifiers, secret_file
from client.ledger.ledger import Ledger, LedgerError
from client.ledger.patient_identity import (
    MARK,
    Patient,
    PatientIndex,
    identifier_mark,
    identifier_of,
    is_scan,
    split_by_patient,
)
from client.ledger.recognition import WITHOUT_IDENTIFIERS, recognise
from client.ledger.statement import Folder, as_text, limit_of, view
from client.site.budget_check import check_privacy
from common.errors import ConfigError
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.dataset import write_phantom_dataset
from tests.client.ledger.test_ledger import DELTA, ROUND, TRAINING, budget, of, patients


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [6], seed=0, shape=(16, 16, 16))


@pytest.fixture
def scans(phantoms: Path, tmp_path: Path) -> Path:
    shutil.copytree(phantoms, tmp_path / "scans")
    (tmp_path / "scans" / "dataset.json").unlink(missing_ok=True)
    return tmp_path / "scans"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "data" / "ledger.jsonl")


def name_patients(scans: Path, identifiers: dict[str, str]) -> None:
    rows = "".join(f"{case},{patient}\n" for case, patient in identifiers.items())
    (scans / "patients.csv").write_text("case,patient\n" + rows)


def names(scans: Path) -> list[str]:
    return [case.name for case in find_dataset(scans).cases]


def identify(scans: Path, ledger: Ledger) -> dict[str, Patient]:
    return PatientIndex(None, Identifiers(ledger, may_make=True).mark).identify(find_dataset(scans).cases)


def spend(ledger: Ledger, people: Sequence[Patient]) -> None:
    budget(ledger.path, list(people)).spend("r", 1, ROUND)


def spent(ledger: Ledger, patient: Patient) -> float:
    return ledger.read().epsilon({"training": [patient]}, DELTA)


def image(scans: Path, name: str) -> Path:
    return scans / "imagesTr" / f"{name}.nii.gz"


def change_a_voxel(file: Path) -> None:
    scan = nibabel.load(file)
    array = np.asarray(scan.dataobj).copy()
    array[5, 5, 5] += 1000
    nibabel.Nifti1Image(array, scan.affine).to_filename(file)


def convert(file: Path) -> None:
    """Float to int16 with a slope, with another header."""
    scan = nibabel.load(file)
    array = np.asarray(scan.dataobj, dtype=np.float64)
    converted = nibabel.Nifti1Image(array, scan.affine)
    converted.header["descrip"] = b"converted anew"
    converted.set_data_dtype(np.int16)
    converted.to_filename(file)


def resample(file: Path) -> None:
    scan = nibabel.load(file)
    array = np.asarray(scan.dataobj)[:-1]
    nibabel.Nifti1Image(array, scan.affine).to_filename(file)


ALTERATIONS = [change_a_voxel, convert]


@pytest.mark.parametrize("alter", [*ALTERATIONS, resample])
def test_the_budget_follows_an_identifier(scans: Path, ledger: Ledger, alter: Callable[[Path], None]) -> None:
    first, *_ = everybody = names(scans)
    name_patients(scans, {name: f"P{name}" for name in everybody})
    before = identify(scans, ledger)
    spend(ledger, list(before.values()))
    alter(image(scans, first))
    after = identify(scans, ledger)
    assert after[first] != before[first] and identifier_of(after[first]) == identifier_of(before[first])
    assert spent(ledger, after[first]) == of(TRAINING)
    assert recognise(ledger.read(), list(after.values())).by_identifier == len(everybody)


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_without_identifiers_nearly_equal_scans_go_on(
    scans: Path, ledger: Ledger, alter: Callable[[Path], None]
) -> None:
    first, *_ = names(scans)
    before = identify(scans, ledger)
    spend(ledger, list(before.values()))
    alter(image(scans, first))
    after = identify(scans, ledger)
    assert not set(filter(is_scan, before[first])) & set(filter(is_scan, after[first]))
    assert spent(ledger, after[first]) == of(TRAINING)
    found = recognise(ledger.read(), [after[first]])
    assert (found.by_likeness, found.identified, found.needs_a_look) == (1, 0, True)
    assert "by a nearly equal scan" in str(found) and "without an identifier" in str(found)


def test_without_identifiers_a_resampled_scan_is_a_new_patient_and_the_statement_says_so(
    scans: Path, ledger: Ledger
) -> None:
    first, *_ = names(scans)
    spend(ledger, list(identify(scans, ledger).values()))
    resample(image(scans, first))
    after = identify(scans, ledger)[first]
    assert spent(ledger, after) == 0
    account = ledger.read()
    content = {"ledger": "l"} | view(account, limit_of(account, None), Folder("scans", [after]))
    assert "resampled" in WITHOUT_IDENTIFIERS and "1 patient without an identifier" in as_text(content, 10_000)
    assert as_text({"ledger": "l"} | view(account, limit_of(account, None)), 10_000).count(WITHOUT_IDENTIFIERS) == 1


def test_a_renamed_file_and_folder_are_the_same_patient(scans: Path, ledger: Ledger, tmp_path: Path) -> None:
    before = identify(scans, ledger)
    first, *_ = before
    spend(ledger, list(before.values()))
    for kind in ("imagesTr", "labelsTr"):
        (scans / kind / f"{first}.nii.gz").rename(scans / kind / "another.nii.gz")
    scans.rename(tmp_path / "elsewhere")
    after = identify(tmp_path / "elsewhere", ledger)
    assert after["another"] == before[first] and spent(ledger, after["another"]) == of(TRAINING)


def test_the_same_scan_under_a_new_identifier_counts_what_both_spent(scans: Path, ledger: Ledger) -> None:
    first, *others = names(scans)
    name_patients(scans, {name: f"P{name}" for name in (first, *others)})
    spend(ledger, list(identify(scans, ledger).values()))
    name_patients(scans, {first: "new"} | {name: f"P{name}" for name in others})
    after = identify(scans, ledger)[first]
    spend(ledger, [after])
    assert spent(ledger, after) == of(TRAINING, TRAINING)
    found = recognise(ledger.read(), [after])
    assert found.renamed == 1 and "under another identifier" in str(found)


def test_swapped_identifiers_count_what_both_spent(scans: Path, ledger: Ledger) -> None:
    """One was trained on twice, the other once; whoever they are now, both have spent both."""
    one, other, *rest = names(scans)
    table = {name: f"P{name}" for name in (one, other, *rest)}
    name_patients(scans, table)
    before = identify(scans, ledger)
    for _ in range(2):
        spend(ledger, [before[one]])
    spend(ledger, [before[other]])
    name_patients(scans, table | {one: table[other], other: table[one]})
    after = identify(scans, ledger)
    for name in (one, other):
        assert spent(ledger, after[name]) == of(*[TRAINING] * 3) > of(TRAINING, TRAINING)
    assert recognise(ledger.read(), [after[one], after[other]]).renamed == 2


def test_a_ledger_written_before_goes_on(scans: Path, ledger: Ledger) -> None:
    """Its patients have the digests of their images, and nothing else."""
    earlier = {name: tuple(filter(is_scan, marks)) for name, marks in identify(scans, ledger).items()}
    spend(ledger, list(earlier.values()))
    name_patients(scans, {name: f"P{name}" for name in earlier})
    now = identify(scans, ledger)
    for patient in now.values():
        assert identifier_of(patient) is not None and spent(ledger, patient) == of(TRAINING)
    assert recognise(ledger.read(), list(now.values())).by_scan == len(now)


def test_the_split_follows_the_identifier_alone() -> None:
    people = {f"{number}": (identifier_mark("0" * 8, f"{number:064x}"), f"{number + 500:064x}") for number in range(60)}
    split = split_by_patient(people, 0.3)
    other = {name: (marks[0], f"{int(marks[1], 16) + 500:064x}", "near:" + "0" * 16) for name, marks in people.items()}
    assert split_by_patient(other, 0.3) == split
    unknown = {name: (marks[1],) for name, marks in people.items()}
    assert split_by_patient({name: (*marks, "near:" + "0" * 16) for name, marks in unknown.items()}, 0.3) == (
        split_by_patient(unknown, 0.3)
    )


def test_an_identifier_is_a_keyed_hash_and_nothing_of_it_is_in_the_ledger(scans: Path, ledger: Ledger) -> None:
    name_patients(scans, {name: "Mu\u0308ller-1970" if name == names(scans)[0] else name for name in names(scans)})
    found = identify(scans, ledger)
    spend(ledger, list(found.values()))
    secret = bytes.fromhex(secret_file(ledger.path).read_text())
    expected = hmac.new(secret, "M\u00fcller-1970".encode(), hashlib.sha256).hexdigest()
    mark = identifier_of(found[names(scans)[0]])
    assert mark is not None and mark.endswith(expected), "both ways to write an umlaut are one name"
    assert all(re.fullmatch(MARK, mark) for marks in found.values() for mark in marks)
    text = ledger.path.read_text()
    assert "ller-1970" not in text and secret.hex() not in text


def test_the_secret_is_made_once_and_for_its_owner(ledger: Ledger) -> None:
    looking = Identifiers(ledger, may_make=False)
    assert looking.mark("a") is None and not secret_file(ledger.path).exists()
    mark = Identifiers(ledger, may_make=True).mark("a")
    assert secret_file(ledger.path).stat().st_mode & 0o777 == 0o600
    assert Identifiers(ledger, may_make=True).mark("a") == looking.mark("a") == mark
    assert mark is not None and mark != Identifiers(ledger, may_make=True).mark("b")


def lose(secret: Path) -> None:
    secret.unlink()


def replace(secret: Path) -> None:
    secret.write_text("0" * 64)


def shorten(secret: Path) -> None:
    secret.write_text(secret.read_text()[:10])


def fill_with_nonsense(secret: Path) -> None:
    secret.write_bytes(b"\xff" * 64)


def link(secret: Path) -> None:
    secret.rename(secret.with_name("elsewhere"))
    secret.symlink_to(secret.with_name("elsewhere"))


@pytest.mark.parametrize("damage", [lose, replace, shorten, fill_with_nonsense, link])
def test_a_secret_that_is_not_the_ledgers_is_refused(ledger: Ledger, damage: Callable[[Path], None]) -> None:
    mark = Identifiers(ledger, may_make=True).mark("a")
    assert mark is not None
    spend(ledger, [(mark, *patients("a")[0])])
    damage(secret_file(ledger.path))
    for may_make in (True, False):
        with pytest.raises(LedgerError, match=secret_file(ledger.path).name):
            Identifiers(ledger, may_make).mark("a")


def test_a_rule_in_the_site_file_names_patients(scans: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "site.yaml").write_text("patient_from_name: '(?P<patient>.*)_[0-9]+'\n")
    rule = load_site_config(state / "site.yaml").patient_rule
    assert rule is not None and rule.fullmatch("a_1")
    (state / "site.yaml").write_text("patient_from_name: '(.*)'\n")
    with pytest.raises(ConfigError, match="patient_from_name"):
        load_site_config(state / "site.yaml")


def test_preflight_tells_of_patients_under_another_identifier(scans: Path, ledger: Ledger, tmp_path: Path) -> None:
    from tests.client.ledger.test_statement import federation as tiny_federation
    from tests.client.ledger.test_statement import planned

    first, *others = names(scans)
    name_patients(scans, {name: f"P{name}" for name in (first, *others)})
    spend(ledger, list(identify(scans, ledger).values()))
    state = tmp_path / "state"
    state.mkdir()
    known = check_privacy(state, *planned(tiny_federation(8)), "north", scans, ledger.path)
    assert f"{len(others) + 1} by identifier" in known.text and "under another" not in known.text, known
    name_patients(scans, {first: "new"} | {name: f"P{name}" for name in others})
    item = check_privacy(state, *planned(tiny_federation(8)), "north", scans, ledger.path)
    assert item.severity == "warning" and "under another identifier" in item.text


@given(
    st.lists(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd")), min_size=1, max_size=3), max_size=4),
    st.tuples(st.sampled_from("pqrs"), st.sampled_from("abcde")),
)
@settings(max_examples=60, deadline=None)
def test_a_patient_was_in_every_dataset_that_a_chain_of_marks_leads_to(
    history: list[list[tuple[str, str]]], asked: tuple[str, str]
) -> None:
    """Against a search that follows shared marks one step at a time."""

    def patient(identifier: str, scan: str) -> Patient:
        return (identifier_mark("0" * 8, hashlib.sha256(identifier.encode()).hexdigest()), *patients(scan)[0])

    datasets = {f"{n}": tuple(patient(*pair) for pair in pairs) for n, pairs in enumerate(history)}
    reached, grew = set(patient(*asked)), True
    while grew:
        more = {mark for members in datasets.values() for marks in members if reached & set(marks) for mark in marks}
        grew, reached = not more <= reached, reached | more
    expected = {name for name, members in datasets.items() if any(reached & set(marks) for marks in members)}
    assert Account(datasets).memberships([patient(*asked)]) == {patient(*asked): frozenset(expected)}
