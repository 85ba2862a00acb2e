"""A site's own data folder."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.ledger.ledger import Ledger, LedgerError, Witness
from client.ledger.patient_identity import PatientsError, is_scan
from client.runner.local_site import LedgerAccess, LocalSite, SiteData
from client.runner.site_split import SiteDataError, split_by_names, split_cases
from common.config.federation import load_federation
from common.imaging.datasets.comparison import SiteTerms
from common.imaging.datasets.name_rule import compile_rule
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.plan.plan import Plan
from common.planning.resolve import with_privacy
from common.protocol.messages import ErrorCode
from common.seeds import seed_of
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantoms", [6], seed=0, shape=(32, 32, 32))


@pytest.fixture
def plan() -> Plan:
    content = tiny.plan().model_dump()
    content["labels"] = {1: "body", 2: "core", 3: "vessel"}
    content["model"]["classes"] = 4
    return Plan.model_validate(content)


def open_site(data: Path, plan: Plan, tmp_path: Path, validation: list[str] | float = 0.34) -> LocalSite:
    config = load_federation(tiny.write_federation(tmp_path))
    return LocalSite(config, plan, SiteData("north", data, tmp_path / "cache", validation), "cpu")


def alone(names: list[str]) -> dict[str, str]:
    """Every case is a patient of its own."""
    return {name: name for name in names}


@given(st.sets(st.text("abc", min_size=1), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_split_gives_every_case_to_one_side_and_no_side_is_empty(names: set[str], fraction: float, seed: int) -> None:
    train, validation = split_cases(alone(sorted(names)), fraction, seed)
    assert train and validation
    assert sorted([*train, *validation]) == sorted(names)
    assert len(validation) == min(max(1, int(fraction * len(names))), len(names) - 1)
    assert split_cases(alone(sorted(names, reverse=True)), fraction, seed) == (train, validation)


def test_other_seeds_give_other_splits() -> None:
    names = [f"case_{number:03d}" for number in range(40)]
    splits = {tuple(split_cases(alone(names), 0.2, seed)[1]) for seed in range(10)}
    assert len(splits) == 10


def test_one_case_cannot_be_split() -> None:
    with pytest.raises(PatientsError, match="1 patient with label maps"):
        split_cases(alone(["alone"]), 0.2, 0)
    with pytest.raises(PatientsError, match="1 patient with label maps"):
        split_cases({"first": "p", "second": "p"}, 0.2, 0)


@given(
    st.dictionaries(st.text("abc", min_size=1), st.sampled_from("pqrs"), min_size=2, max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_no_patient_is_on_both_sides(owners: dict[str, str], fraction: float, seed: int) -> None:
    assume(len(set(owners.values())) > 1)
    train, validation = split_cases(owners, fraction, seed)
    assert train and validation and sorted([*train, *validation]) == sorted(owners)
    assert not {owners[name] for name in train} & {owners[name] for name in validation}


def test_a_hospital_may_name_its_validation_cases() -> None:
    assert split_by_names(alone(["a", "b", "c"]), ["c", "a"]) == (["b"], ["a", "c"])


def test_named_cases_must_exist_and_leave_some_to_train_on() -> None:
    with pytest.raises(SiteDataError, match="no labelled case d"):
        split_by_names(alone(["a", "b"]), ["d"])
    with pytest.raises(SiteDataError, match="leave at least one to train on"):
        split_by_names(alone(["a", "b"]), ["a", "b"])


def test_named_cases_may_not_tear_a_patient_apart() -> None:
    owners = {"a1": "a", "a2": "a", "b": "b"}
    with pytest.raises(SiteDataError, match=r"names a2 but not a1 of the same patient \(patients\.csv\)"):
        split_by_names(owners, ["a2"])
    assert split_by_names(owners, ["a1", "a2"]) == (["b"], ["a1", "a2"])


def test_opens_a_site_with_the_seeds_of_a_simulation(data: Path, plan: Plan, tmp_path: Path) -> None:
    local = open_site(data, plan, tmp_path)
    site = local.open()
    assert (len(site.train_cases), len(site.validation_cases)) == (4, 2)
    assert site.seed == seed_of(1, "north")
    assert site.digest == load_federation(tmp_path / "federation.yaml").digest()
    assert site.trainer.total_steps == 9
    assert local.open() is site, "model and data stay warm"


def test_data_that_cannot_be_used_has_a_code_for_the_server(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(SiteDataError) as caught:
        open_site(tmp_path / "nowhere", plan, tmp_path).open()
    assert caught.value.code is ErrorCode.NO_DATA


def test_data_that_were_put_right_are_used_without_a_restart(data: Path, plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    local = open_site(folder, plan, tmp_path)
    with pytest.raises(SiteDataError):
        local.open()
    shutil.copytree(data, folder)
    assert len(local.open().train_cases) == 4


def private_site(data: Path, plan: Plan, tmp_path: Path, validation: list[str] | float = 0.34) -> LocalSite:
    content = tiny.FEDERATION + "privacy: {epsilon: 8, sample_rate: 0.5}\n"
    (tmp_path / "federation.yaml").write_text(content, encoding="utf-8")
    config = load_federation(tmp_path / "federation.yaml")
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    ledger = Ledger(tmp_path / "ledger.jsonl", Witness(state))
    scans = SiteData("north", data, tmp_path / "cache", validation)
    return LocalSite(config, with_privacy(plan, config), scans, "cpu", access=LedgerAccess(state, ledger))


def test_a_private_federation_is_paid_for_in_the_ledger(data: Path, plan: Plan, tmp_path: Path) -> None:
    site = private_site(data, plan, tmp_path).open()
    assert site.privacy is not None and site.privacy.validation is not None and site.budget is not None
    assert len(site.train_cases) + len(site.validation_cases) == 6
    site.budget.spend("r", 1, [site.privacy.training, site.privacy.validation])
    account = Ledger(tmp_path / "ledger.jsonl").read()
    assert [line.purpose for line in account.rounds[0].entry.spends] == ["training", "validation"]
    sizes = {line.purpose: len(account.datasets[line.dataset]) for line in account.rounds[0].entry.spends}
    assert sizes == {"training": len(site.train_cases), "validation": len(site.validation_cases)}


def test_a_renamed_folder_and_renamed_files_are_the_same_patients(data: Path, plan: Plan, tmp_path: Path) -> None:
    """The hospital moves its scans, renames every case, and the files are even compressed anew."""
    first = private_site(data, plan, tmp_path).open()
    assert first.privacy is not None and first.budget is not None
    spent = first.budget.spend("r", 1, [first.privacy.training])
    moved = tmp_path / "moved" / "elsewhere"
    for kind in ("imagesTr", "labelsTr"):
        (moved / kind).mkdir(parents=True)
        for number, file in enumerate(sorted((data / kind).glob("*.nii.gz"))):
            packed = gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=1)
            (moved / kind / f"patient_{'xzybca'[number]}.nii.gz").write_bytes(packed)
    (tmp_path / "state").rename(tmp_path / "earlier-state")
    second = private_site(moved, plan, tmp_path).open()
    assert second.budget is not None
    assert {len(second.train_cases)} == {len(first.train_cases)}
    assert second.budget.spend("r2", 1, [first.privacy.training]) > spent
    assert len(Ledger(tmp_path / "ledger.jsonl").read().datasets) == 1


def test_a_hospital_may_name_validation_cases_under_privacy_too(data: Path, plan: Plan, tmp_path: Path) -> None:
    name = sorted((data / "imagesTr").glob("*.nii.gz"))[2].name.removesuffix(".nii.gz")
    site = private_site(data, plan, tmp_path, [name]).open()
    assert [case.name for case in site.validation_cases] == [name]


def test_a_private_federation_without_a_ledger_is_refused(data: Path, plan: Plan, tmp_path: Path) -> None:
    config = private_site(data, plan, tmp_path)._config
    local = LocalSite(config, with_privacy(plan, config), SiteData("north", data, tmp_path / "cache", 0.34), "cpu")
    with pytest.raises(LedgerError) as caught:
        local.open()
    assert caught.value.code is ErrorCode.LEDGER


def test_a_broken_ledger_is_told_when_the_site_is_opened(data: Path, plan: Plan, tmp_path: Path) -> None:
    local = private_site(data, plan, tmp_path)
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("nonsense\n")
    with pytest.raises(LedgerError, match=str(ledger)):
        local.open()
    ledger.unlink()
    assert local.open().budget is not None, "put right, it is used without a restart"


def test_a_patient_who_is_there_twice_is_refused(data: Path, plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    shutil.copytree(data, folder)
    for kind in ("imagesTr", "labelsTr"):
        first = min((folder / kind).glob("*.nii.gz"))
        shutil.copy(first, folder / kind / "again.nii.gz")
    (folder / "dataset.json").unlink(missing_ok=True)
    with pytest.raises(PatientsError, match="same image") as caught:
        private_site(folder, plan, tmp_path).open()
    assert caught.value.code is ErrorCode.NO_DATA


def with_patients(data: Path, folder: Path, patients: str) -> Path:
    """A copy of the six phantoms with a table of patients, one letter for each case."""
    shutil.copytree(data, folder)
    names = sorted(file.name.removesuffix(".nii.gz") for file in (folder / "imagesTr").glob("*.nii.gz"))
    rows = [f"{name},{patient}" for name, patient in zip(names, patients, strict=True)]
    (folder / "patients.csv").write_text("\n".join(["case,patient", *rows]) + "\n")
    return folder


@pytest.mark.parametrize("patients", ["aabbcc", "abcabc", "aaaaab"])
def test_scans_of_one_patient_are_one_patient(data: Path, plan: Plan, tmp_path: Path, patients: str) -> None:
    """In the split, in what is declared to the server, and in the ledger."""
    site = private_site(with_patients(data, tmp_path / "scans", patients), plan, tmp_path, 0.34).open()
    sides = [{case.owner for case in cases} for cases in (site.train_cases, site.validation_cases)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(patients)
    assert len(site.train_cases) + len(site.validation_cases) == 6
    assert (site.train_examples, site.validation_examples) == (len(sides[0]), len(sides[1]))
    assert site.privacy is not None and site.privacy.validation is not None and site.budget is not None
    site.budget.spend("r", 1, [site.privacy.training, site.privacy.validation])
    account = Ledger(tmp_path / "ledger.jsonl").read()
    assert sorted(map(len, account.datasets.values())) == sorted(map(len, sides))
    marks = [mark for members in account.datasets.values() for patient in members for mark in patient]
    assert sum(map(is_scan, marks)) == 6, "all images"
    assert sum(mark.startswith("id:") for mark in marks) == len(set(patients))


def test_a_rule_in_place_of_a_table_joins_scans_of_one_patient(data: Path, plan: Plan, tmp_path: Path) -> None:
    names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "imagesTr").glob("*.nii.gz"))
    scans = tmp_path / "scans"
    shutil.copytree(data, scans)
    (scans / "dataset.json").unlink()
    for name, new in zip(names, ("sub-1_a", "sub-1_b", "sub-2_a", "sub-2_b", "sub-3", "sub-4"), strict=True):
        for kind in ("imagesTr", "labelsTr"):
            (scans / kind / f"{name}.nii.gz").rename(scans / kind / f"{new}.nii.gz")
    rule = compile_rule("sub-(?P<patient>[0-9]+)(?:_.*)?")
    config = load_federation(tiny.write_federation(tmp_path))
    site = LocalSite(
        config, plan, SiteData("north", scans, tmp_path / "cache", 0.34, SiteTerms(patient_rule=rule)), "cpu"
    ).open()
    sides = [{case.owner for case in cases} for cases in (site.train_cases, site.validation_cases)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == {"1", "2", "3", "4"}


def test_scans_of_one_patient_are_on_one_side_without_privacy_too(data: Path, plan: Plan, tmp_path: Path) -> None:
    site = open_site(with_patients(data, tmp_path / "scans", "aabbcc"), plan, tmp_path).open()
    sides = [{case.owner for case in cases} for cases in (site.train_cases, site.validation_cases)]
    assert not sides[0] & sides[1]
    assert (site.train_examples, site.validation_examples) == (4, 2), "updates weigh by scans"


def test_a_scan_that_comes_later_is_the_same_patients(data: Path, plan: Plan, tmp_path: Path) -> None:
    """First his cases count alone; then the table says whose they are, and he keeps what both have spent."""
    # Which patients are trained on would depend on the ledger's random secret.
    validation = ["phantom_004"]
    before = private_site(with_patients(data, tmp_path / "before", "abcdef"), plan, tmp_path, validation).open()
    assert before.privacy is not None and before.budget is not None
    spent = before.budget.spend("r", 1, [before.privacy.training])
    after = private_site(with_patients(data, tmp_path / "after", "aaabcc"), plan, tmp_path, validation).open()
    assert after.privacy is not None and after.budget is not None
    assert after.budget.spend("r", 2, [after.privacy.training]) > spent


def test_a_table_that_does_not_fit_keeps_the_site_out(data: Path, plan: Plan, tmp_path: Path) -> None:
    folder = with_patients(data, tmp_path / "scans", "aabbcc")
    (folder / "patients.csv").write_text("case,patient\nnobody,a\n")
    with pytest.raises(SiteDataError, match=r"patients\.csv: line 2: there is no case 'nobody'") as caught:
        private_site(folder, plan, tmp_path).open()
    assert caught.value.code is ErrorCode.NO_DATA
