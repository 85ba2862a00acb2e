"""The hospital's own file: what it allows, and how it is refused when it is wrong."""

from __future__ import annotations

from datetime import time
from pathlib import Path

import pytest

from client.consent.site_config import Limits, SiteConfig, SiteNetwork, SitePrivacy, load_site_config
from common.config.federation import FederationConfig
from common.errors import ConfigError
from tests import tiny


def federation(**values: object) -> FederationConfig:
    return tiny.federation(rounds=10, **({"labels": {1: "liver", 2: "tumour"}, "channels": ("CT",)} | values))


def test_without_a_file_a_person_must_approve(tmp_path: Path) -> None:
    site = load_site_config(tmp_path / "site.yaml")
    assert site == SiteConfig()
    assert not site.limits.automatic_approval
    assert site.limits.violations(federation()) == []


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "limits: {max_rounds: 20, max_local_steps: 50, federations: [tiny], labels: [liver], channels: [CT],"
        " automatic_approval: true}\npaused: true\nvalidation_cases: [a, b]\n"
    )
    site = load_site_config(file)
    assert (site.paused, site.validation_cases, site.limits.max_rounds) == (True, ("a", "b"), 20)
    file.write_text("# nothing yet\n")
    assert load_site_config(file) == SiteConfig()


def test_steps_of_a_personal_model_count_against_the_limit() -> None:
    limits = Limits(max_local_steps=50)
    ditto = {"method": "ditto", "steps": 11}
    assert limits.violations(tiny.federation(training={"local_steps": 40})) == []
    assert limits.violations(tiny.federation(training={"local_steps": 40}, personal={"method": "norms"})) == []
    [said] = limits.violations(tiny.federation(training={"local_steps": 40}, personal=ditto))
    assert "51 training steps a round are more than limits.max_local_steps (50)" in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("geometry: {voxel_mm: [20, 0.05]}", "geometry.*smallest edge first"),
        ("geometry: {voxel_mm: [0.05, .inf]}", "geometry.voxel_mm"),
        ("geometry: {voxels: [1, 2]}", "did you mean voxel_mm"),
        ("limits: {max_round: 3}", "did you mean max_rounds"),
        ("limits: {max_rounds: 0}", "max_rounds"),
        ("limits: {max_rounds: many}", "max_rounds"),
        ("limits: {automatic_approval: true}", "needs bounds: add federations, max_rounds, max_local_steps"),
        ("limits: {automatic_approval: true, federations: [a], max_rounds: 3}", "max_local_steps"),
        ("privacy: {max_epsilon: 0}", "max_epsilon"),
        ("privacy: {max_epsilon: .nan}", "max_epsilon"),
        ("privacy: {max_epsilon: .inf}", "max_epsilon"),
        ("privacy: {delta: 0.5}", "delta"),
        ("privacy: {epsilon: 8}", "did you mean max_epsilon"),
        ("validation_cases: []", "at least one"),
        ("validation_cases: [a, a]", "only once"),
        ("paused: true\npaused: false", "duplicate key"),
        ("network: {max_megabits: 0}", "network.max_megabits: must be at least 0.1"),
        ("network: {max_megabits: fast}", "network.max_megabits: must be a number"),
        ("network: {megabits: 5}", "network.megabits: unknown key; did you mean max_megabits"),
        ('network: {large_files_between: ["20:00"]}', "network.large_files_between"),
        ('network: {large_files_between: ["20:00", "24:00"]}', "time of day such as"),
        ('network: {large_files_between: ["8", "10"]}', "time of day such as"),
        ("network: {large_files_between: [5000, 6000]}", "network.large_files_between"),
        ('network: {large_files_between: ["20:00", "20:00"]}', "two different times"),
        ("- paused", "must be a mapping"),
        ("paused: [", "not valid YAML"),
        ("paused: !!python/object/apply:os.getcwd []", "line 1: tags \\(!\\) are not supported"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as error:
        load_site_config(file)
    assert str(file) in str(error.value)


def test_a_file_that_cannot_be_read_is_no_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site_config(tmp_path)


@pytest.mark.parametrize(
    ("limits", "asked", "said"),
    [
        ({"max_rounds": 10}, {}, None),
        ({"max_rounds": 9}, {}, "10 rounds"),
        ({"max_local_steps": 40}, {}, None),
        ({"max_local_steps": 39}, {}, "40 training steps"),
        ({"federations": ["tiny", "other"]}, {}, None),
        ({"federations": ["other"]}, {}, "'tiny'"),
        ({"federations": []}, {}, "'tiny'"),
        ({"labels": ["liver", "tumour", "spleen"]}, {}, None),
        ({"labels": ["liver"]}, {}, "label 'tumour'"),
        ({"labels": ["liver"]}, {"labels": None}, "does not name its labels"),
        ({"channels": ["CT"]}, {}, None),
        ({"channels": ["T1"]}, {}, "channel 'CT'"),
        ({"channels": ["T1"]}, {"channels": None}, "does not name its channels"),
    ],
)
def test_limits(limits: dict[str, object], asked: dict[str, object], said: str | None) -> None:
    found = Limits.model_validate(limits).violations(federation(**asked))
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert said in found[0]


def test_what_patients_may_lose(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    assert load_site_config(file).privacy == SitePrivacy(required=False, max_epsilon=None, delta=1e-5)
    file.write_text("privacy: {required: true, max_epsilon: 8, delta: 1.0e-6}\n")
    assert load_site_config(file).privacy == SitePrivacy(required=True, max_epsilon=8, delta=1e-6)


def test_privacy_can_be_required() -> None:
    plain, private = federation(), federation(privacy={"epsilon": 100})
    assert SitePrivacy().violations(plain) == SitePrivacy(required=True).violations(private) == []
    [said] = SitePrivacy(required=True).violations(plain)
    assert "requires differential privacy" in said


def test_how_much_of_the_line_may_be_taken(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    assert load_site_config(file).network == SiteNetwork(max_megabits=None, large_files_between=None)
    assert load_site_config(file).network.hours is None
    file.write_text('network: {max_megabits: 50, large_files_between: ["20:00", "06:00"]}\n')
    network = load_site_config(file).network
    assert network.max_megabits == 50
    assert network.hours == (time(20), time(6))


def test_times_need_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("network: {large_files_between: [20:30, 6:00]}\n")
    assert load_site_config(file).network.hours == (time(20, 30), time(6))
