"""An approval is used up by what was begun, whatever it is called."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from client.consent.contract import Begun, Contract, UsedUpError
from client.consent.hospital_file import HospitalFile, HospitalFileError

ROUNDS = 3
NEW = Contract()


def begun(count: int, train: bool = True, contract: Contract = NEW, rounds: int = ROUNDS) -> Contract:
    for number in range(count):
        contract = contract.with_begun(Begun(attempt=f"{train}-{number}-{len(contract.begun)}", train=train), rounds)
    return contract


def test_as_many_trainings_as_rounds_and_one_scoring_more() -> None:
    trained = begun(ROUNDS)
    with pytest.raises(UsedUpError, match="all 3 trainings of the approval are used"):
        begun(1, True, trained)
    scored = begun(1, False, trained)
    for train in (True, False):
        with pytest.raises(UsedUpError):
            begun(1, train, scored)


def test_scorings_alone_are_counted_too() -> None:
    with pytest.raises(UsedUpError, match="all 4 scorings"):
        begun(1, False, begun(ROUNDS + 1, False))
    assert begun(1, True, begun(ROUNDS, False)).summary(ROUNDS) == "1 of 3 trainings used"


def test_the_same_attempt_counts_once() -> None:
    work, contract = Begun(attempt="a", train=True), begun(ROUNDS - 1)
    once = contract.with_begun(work, ROUNDS)
    assert once.with_begun(work, ROUNDS) == once and once.is_used_up(ROUNDS) and not contract.is_used_up(ROUNDS)


def test_a_person_can_allow_more() -> None:
    more = begun(ROUNDS).with_more(2)
    assert more.summary(ROUNDS) == "3 of 5 trainings used, 2 of them allowed later"
    with pytest.raises(UsedUpError, match="all 5 trainings"):
        begun(3, True, more)
    assert begun(2, True, more).is_used_up(ROUNDS)


def test_work_that_failed_is_given_back_but_not_without_end() -> None:
    contract, trainings = Contract(), 0
    with pytest.raises(UsedUpError):
        for number in range(100):
            work = Begun(attempt=str(number), train=True)
            contract = contract.with_begun(work, ROUNDS).without(work, ROUNDS)
            trainings += 1
    assert trainings == 2 * ROUNDS


def test_what_was_not_begun_gives_nothing_back() -> None:
    contract = begun(1)
    assert contract.without(Begun(attempt="other", train=True), ROUNDS) == contract


@pytest.fixture
def hospital(tmp_path: Path) -> HospitalFile:
    made = HospitalFile(tmp_path / "hospital" / "consent.json")
    made.make_key()
    return made


def test_contracts_of_other_federations_and_sites_are_apart(hospital: HospitalFile) -> None:
    hospital.change("a" * 64, "north", lambda contract: begun(2, True, contract))
    hospital.change("b" * 64, "north", lambda contract: begun(1, True, contract))
    again = HospitalFile(hospital.path)
    counts = [len(again.contract(digest * 64, site).begun) for digest in "ab" for site in ("north", "south")]
    assert counts == [2, 0, 1, 0]


def test_the_key_stays_while_work_is_counted(hospital: HospitalFile) -> None:
    seal = hospital.seal(b"text")
    hospital.change("a" * 64, "north", begun_once)
    hospital.make_key()
    assert HospitalFile(hospital.path).seal(b"text") == seal


def begun_once(contract: Contract) -> Contract:
    return begun(1, True, contract)


def test_nothing_is_counted_twice_or_lost_by_many_at_once(hospital: HospitalFile) -> None:
    refused: list[int] = []

    def work(number: int) -> None:
        for repeat in range(5):
            one = Begun(attempt=f"{number}-{repeat}", train=True)
            try:
                HospitalFile(hospital.path).change("a" * 64, "north", lambda known, one=one: known.with_begun(one, 12))
            except UsedUpError:
                refused.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hospital.contract("a" * 64, "north").begun) == 12 and len(refused) == 8


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "key": "abc"}', '{"format": 2}'])
def test_a_damaged_file_counts_nothing(hospital: HospitalFile, content: str) -> None:
    hospital.path.write_text(content)
    for action in (hospital.make_key, lambda: hospital.change("a" * 64, "north", begun_once)):
        with pytest.raises(HospitalFileError, match=r"SHA-256.*; restore it from a backup"):
            action()
    hospital.path.unlink()
    with pytest.raises(HospitalFileError, match="is missing"):
        hospital.change("a" * 64, "north", begun_once)
