"""Sites out of one dataset: everybody is somewhere, nobody is twice."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.federation import as_json
from common.config.simulation import (
    ColumnPartition,
    IidPartition,
    LabelPartition,
    Partition,
    QuantityPartition,
    ScannerPartition,
)
from common.errors import ConfigError
from common.plan.scanner_shift import ScannerShift
from server.simulation.partition import SitePartition, make_partition, next_fold, read_partition

CASES = [f"case_{index:03d}" for index in range(60)]
VOLUMES = {case: float(index) for index, case in enumerate(CASES)}
METHODS: list[Partition] = [
    IidPartition(method="iid", sites=4),
    QuantityPartition(method="quantity", sites=4, alpha=0.5),
    LabelPartition(method="label", sites=4, alpha=0.5),
    ScannerPartition(method="scanner", sites=4),
]


def members(partition: SitePartition) -> dict[str, list[str]]:
    return {name: [*site.train, *site.validation] for name, site in partition.sites.items()}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
def test_every_case_is_in_exactly_one_place(method: Partition) -> None:
    partition = make_partition(method, Path(), CASES, VOLUMES, seed=3)
    assert sorted(case for cases in members(partition).values() for case in cases) == CASES
    assert all(site.train and site.validation for site in partition.sites.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0.05, 50), st.integers(12, 40))
def test_skewed_shares_keep_every_case_and_the_minimum(seed: int, sites: int, alpha: float, count: int) -> None:
    cases = CASES[:count]
    for method in (
        QuantityPartition(method="quantity", sites=sites, alpha=alpha, minimum=2),
        LabelPartition(method="label", sites=sites, alpha=alpha, minimum=2),
    ):
        shares = members(make_partition(method, Path(), cases, VOLUMES, seed))
        assert sorted(case for share in shares.values() for case in share) == cases
        assert min(map(len, shares.values())) >= 2


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
def test_the_seed_decides(method: Partition) -> None:
    first, again, other = (make_partition(method, Path(), CASES, VOLUMES, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_order_of_the_cases_does_not_matter() -> None:
    shuffled = list(reversed(CASES))
    assert make_partition(METHODS[0], Path(), CASES, VOLUMES, 1) == make_partition(
        METHODS[0], Path(), shuffled, VOLUMES, 1
    )


def test_small_alpha_gives_more_unequal_sizes() -> None:
    def spread(alpha: float) -> float:
        method = QuantityPartition(method="quantity", sites=4, alpha=alpha, minimum=2)
        sizes = [
            [len(share) for share in members(make_partition(method, Path(), CASES, VOLUMES, seed)).values()]
            for seed in range(20)
        ]
        return float(np.mean(np.std(sizes, axis=1)))

    assert spread(0.1) > 2 * spread(100.0)


def test_label_skew_gives_sites_of_different_volume() -> None:
    def spread(alpha: float) -> float:
        method = LabelPartition(method="label", sites=4, alpha=alpha)
        spreads = []
        for seed in range(20):
            shares = members(make_partition(method, Path(), CASES, VOLUMES, seed))
            spreads.append(np.std([np.mean([VOLUMES[case] for case in share]) for share in shares.values()]))
        return float(np.mean(spreads))

    assert spread(0.1) > 2 * spread(100.0)


def test_scanner_shift_differs_between_sites_and_follows_the_file() -> None:
    drawn = make_partition(ScannerPartition(method="scanner", sites=4), Path(), CASES, VOLUMES, 0)
    assert len({as_json(site.shift) for site in drawn.sites.values() if site.shift}) == 4
    shifts = (ScannerShift(gamma=0.5), ScannerShift())
    given_ = make_partition(ScannerPartition(method="scanner", sites=2, shifts=shifts), Path(), CASES, VOLUMES, 0)
    assert [given_.sites[name].shift for name in ("site-1", "site-2")] == list(shifts)


def table(folder: Path, rows: list[str], header: str = "case,group") -> Path:
    path = folder / "groups.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


COLUMN = ColumnPartition(method="column", file="groups.csv", column="group", validation_fraction=0.25)


def test_column_makes_a_site_of_every_value(tmp_path: Path) -> None:
    table(tmp_path, [f"{case},{'big one' if index < 40 else 'small'}" for index, case in enumerate(CASES)])
    partition = make_partition(COLUMN, tmp_path, CASES, VOLUMES, 0)
    assert {name: len(cases) for name, cases in members(partition).items()} == {"big-one": 40, "small": 20}
    assert len(partition.sites["small"].validation) == 5
    assert partition.sites["small"].differs == "group = small"


@pytest.mark.parametrize(
    ("rows", "header", "complaint"),
    [
        ([f"{case},a" for case in CASES[1:]], "case,group", "no value for case case_000"),
        ([f"{case},a" for case in CASES], "case,site", "has no column group"),
        ([f"{case},{'a' if case != CASES[0] else 'lonely'}" for case in CASES], "case,group", "lonely has 1 patient"),
        ([f"{case}," for case in CASES], "case,group", "no value for case"),
    ],
)
def test_a_column_that_does_not_fit_is_refused(tmp_path: Path, rows: list[str], header: str, complaint: str) -> None:
    table(tmp_path, rows, header)
    with pytest.raises(ConfigError, match=complaint):
        make_partition(COLUMN, tmp_path, CASES, VOLUMES, 0)


def test_a_case_that_stands_twice_in_the_table_is_refused(tmp_path: Path) -> None:
    table(tmp_path, [f"{case},a" for case in (*CASES, CASES[0])])
    with pytest.raises(ConfigError, match="line 62: duplicate case case_000"):
        make_partition(COLUMN, tmp_path, CASES, VOLUMES, 0)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"groups\.csv"):
        make_partition(COLUMN, tmp_path, CASES, VOLUMES, 0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.method)
def test_scans_of_one_patient_stay_together(tmp_path: Path, method: Partition) -> None:
    owners = {case: f"p{index // 3}" for index, case in enumerate(CASES)}
    partition = make_partition(method, tmp_path, CASES, VOLUMES, 0, owners)
    for start in range(0, 60, 3):
        scans = set(CASES[start : start + 3])
        homes = [
            part for site in partition.sites.values() for part in (site.train, site.validation) if scans & set(part)
        ]
        assert len(homes) == 1


@pytest.mark.parametrize(
    "method",
    [
        IidPartition(method="iid", sites=31),
        QuantityPartition(method="quantity", sites=4, minimum=16),
        LabelPartition(method="label", sites=4, minimum=16),
        ScannerPartition(method="scanner", sites=40),
    ],
)
def test_more_sites_than_patients_allow_is_refused(method: Partition) -> None:
    with pytest.raises(ConfigError, match=r"simulation\.partition"):
        make_partition(method, Path(), CASES, VOLUMES, 0)


def test_partition_file_reads_back(tmp_path: Path) -> None:
    partition = make_partition(METHODS[3], Path(), CASES, VOLUMES, 5)
    (tmp_path / "partition.json").write_text(as_json(partition))
    assert read_partition(tmp_path / "partition.json") == partition


@pytest.mark.parametrize(
    ("sites", "complaint"),
    [
        ('{"a": {"train": ["x"], "validation": ["x"]}}', "x is listed twice"),
        ('{"a": {"train": ["x"], "validation": ["y"]}, "b": {"train": ["y"], "validation": ["z"]}}', "y is listed"),
        ('{"a": {"train": [], "validation": ["y"]}}', "a has no training patient"),
        ('{"a": {"train": ["x"], "validation": []}}', "a has no validation patient"),
    ],
)
def test_partition_file_with_a_leak_or_an_empty_part_is_refused(tmp_path: Path, sites: str, complaint: str) -> None:
    path = tmp_path / "partition.json"
    path.write_text(f'{{"method": "iid", "seed": 0, "sites": {sites}}}')
    with pytest.raises(ConfigError, match=complaint):
        read_partition(path)


def test_label_skew_can_have_scanners_too() -> None:
    plain = LabelPartition(method="label", sites=4, alpha=0.1)
    shifted = LabelPartition(method="label", sites=4, alpha=0.1, strength=1.0)
    one, other = (make_partition(each, Path(), CASES, VOLUMES, 3) for each in (plain, shifted))
    assert {name: sorted(cases) for name, cases in members(one).items()} == {
        name: sorted(cases) for name, cases in members(other).items()
    }
    assert not any(site.shift for site in one.sites.values())
    assert len({as_json(site.shift) for site in other.sites.values() if site.shift}) == 4
    assert all(site.differs.startswith("share by labelled volume; scanner: ") for site in other.sites.values())
    assert "strength" not in as_json(plain)
    assert LabelPartition.model_validate_json(as_json(shifted)) == shifted


def test_folds_of_a_fifth_are_a_cross_validation_at_every_site() -> None:
    owners = {case: f"patient_{index // 2:02d}" for index, case in enumerate(CASES)}
    first = make_partition(IidPartition(method="iid", sites=3), Path(), CASES, VOLUMES, 3, owners)
    assert next_fold(first, owners, 0) == first
    folds = [next_fold(first, owners, fold) for fold in range(5)]
    for name, site in first.sites.items():
        assert all(sorted(members(fold)[name]) == sorted(members(first)[name]) for fold in folds)
        patients = [{owners[case] for case in fold.sites[name].validation} for fold in folds]
        assert len(set.union(*patients)) == sum(map(len, patients)) == 10
        assert all(site.shift == fold.sites[name].shift for fold in folds)
        trained = [{owners[case] for case in fold.sites[name].train} for fold in folds]
        assert not any(one & other for one, other in zip(patients, trained, strict=True))
    assert next_fold(first, owners, 5) == first
