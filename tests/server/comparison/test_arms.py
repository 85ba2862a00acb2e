"""Arms: which exist, what each changes in the federation file, and what these sites cannot do."""

from __future__ import annotations

import pytest

from common.config.federation import FederationConfig
from common.errors import ConfigError
from server.comparison.arms import ARMS, check_configuration, check_settings, configuration, parse_arms, seeds_from
from tests import tiny

SCANS = [8, 8, 8, 8]


def federation(**values: object) -> FederationConfig:
    return tiny.federation(**{"training": {"local_steps": 10}, "seed": 7} | values)


def test_every_arm_can_be_named() -> None:
    assert [arm.name for arm in parse_arms(" local, pooled,fedavg ")] == ["local", "pooled", "fedavg"]
    assert len(parse_arms(",".join(ARMS))) == len(ARMS)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("local,fedagv", "--arms fedagv: is no arm; did you mean fedavg? There are local, local_long, pooled"),
        ("alone", "--arms alone: is no arm"),
        ("local,pooled,local", "--arms local: is given twice"),
        (" , ", "--arms: names no arm"),
    ],
)
def test_what_is_no_arm(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arms(text)
    assert complaint in str(error.value)


def test_an_arm_may_have_settings_of_its_own_and_variants() -> None:
    changes = ["fedprox@strong:strategy.proximal_mu=0.5", "scaffold:training.optimizer=sgd"]
    plain, strong, scaffold = parse_arms("fedprox,fedprox@strong,scaffold", changes)
    made = {arm.name: configuration(arm, federation(), SCANS, 8) for arm in (plain, strong, scaffold)}
    assert [made[name].strategy.proximal_mu for name in ("fedprox", "fedprox@strong")] == [0.01, 0.5]
    assert made["fedprox@strong"].strategy.name == "fedprox"
    assert (made["scaffold"].training.optimizer, made["fedprox"].training.optimizer) == ("sgd", "adamw")
    assert {config.training.local_steps for config in made.values()} == {10}
    assert "strategy.proximal_mu=0.5" in strong.meaning
    with pytest.raises(ConfigError, match=r"--arms scaffold: .* needs training\.optimizer sgd"):
        configuration(ARMS["scaffold"], federation(), SCANS, 8)


@pytest.mark.parametrize(
    ("arms", "change", "complaint"),
    [
        ("fedavg@", None, "write letters, digits, dots and underscores after the @"),
        ("fedavg@a-b", None, "write letters, digits, dots and underscores after the @"),
        ("fedavg@b", None, "--arms fedavg@b: differs in nothing"),
        ("fedagv@b", None, "is no arm; did you mean fedavg?"),
        ("fedavg", "fedprox:strategy.proximal_mu=1", "fedprox is not among --arms"),
        ("fedavg", "fedavg", "write it as ARM:KEY.PATH=VALUE"),
        ("fedavg", "training.optimizer=sgd", "write it as ARM:KEY.PATH=VALUE"),
        ("fedavg", "fedavg:training.local_steps=9", "training.local_steps must be equal in all arms"),
        ("fedavg", "fedavg:training.batch_size=4", "training.batch_size must be equal in all arms"),
        ("fedavg", "fedavg:model.channels=[8, 16]", "model.channels must be equal in all arms"),
        ("fedavg", "fedavg:training=null", "training must be equal in all arms"),
        ("fedavg", "fedavg:strategy.name=fedprox", "strategy.name must be equal in all arms"),
    ],
)
def test_what_is_no_variant(arms: str, change: str | None, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arms(arms, [change] if change else [])
    assert complaint in str(error.value)


def test_a_wrong_setting_of_an_arm_is_refused_with_its_key() -> None:
    (arm,) = parse_arms("fedprox", ["fedprox:strategy.proximal_mu=-1"])
    with pytest.raises(ConfigError, match=r"--arms fedprox: .*proximal_mu"):
        configuration(arm, federation(), SCANS, 8)


@pytest.mark.parametrize("name", ["scaffold", "fednova@other"])
def test_an_arm_that_needs_sgd_says_how_to_give_it_that(name: str) -> None:
    """What it says to add is enough."""
    other = [f"{name}:training.weight_decay=0"]
    with pytest.raises(ConfigError, match=r"needs training\.optimizer sgd") as error:
        check_settings(federation(), parse_arms(name, other))
    added = [word.rstrip(",") for word in str(error.value).split() if word.startswith(f"{name}:training")]
    assert added == [f"{name}:training.optimizer=sgd", f"{name}:training.learning_rate=0.05"]
    check_settings(federation(), parse_arms(name, [*other, *added]))


def test_seeds_follow_the_files() -> None:
    assert seeds_from(federation(), 3) == (7, 8, 9)
    for count in (0, -1):
        with pytest.raises(ConfigError, match=rf"--seeds {count}: must be at least 1"):
            seeds_from(federation(), count)


@pytest.mark.parametrize(
    ("arm", "steps"), [("local", 10), ("local_long", 40), ("pooled", 40), ("pooled_short", 10), ("fedprox", 10)]
)
def test_steps_of_a_round(arm: str, steps: int) -> None:
    made = configuration(ARMS[arm], federation(), SCANS, 8)
    assert (made.training.local_steps, made.seed) == (steps, 8)


def test_an_arm_keeps_what_the_file_says_about_rounds_and_its_own_algorithm() -> None:
    written = federation(strategy={"name": "fedprox", "proximal_mu": 0.5, "min_sites": 2, "weights": "capped:3"})
    assert configuration(ARMS["fedprox"], written, SCANS, 7).strategy == written.strategy
    averaging = configuration(ARMS["fedavgm"], written, SCANS, 7).strategy
    assert (averaging.name, averaging.min_sites, averaging.weights) == ("fedavgm", 2, "capped:3")
    assert (averaging.proximal_mu, averaging.server_momentum) == (None, 0.9)


def test_pooled_makes_the_steps_of_all_sites_when_these_follow_from_their_scans() -> None:
    """A batch of 2, so half as many steps as scans; the fourth site is held to 30."""
    written = federation(training={"local_epochs": 1, "local_steps": 30, "batch_size": 2})
    sizes = [10, 20, 5, 200]
    for arm in ("pooled", "local_long"):
        made = configuration(ARMS[arm], written, sizes, 7).training
        assert made.steps_of(sum(sizes)) == made.steps_of(1) == 5 + 10 + 3 + 30
    alone = configuration(ARMS["local"], written, sizes, 7).training
    assert [alone.steps_of(size) for size in sizes] == [5, 10, 3, 30]


def test_weights_do_not_pass_between_algorithms_that_count_sites_differently() -> None:
    written = federation(strategy={"weights": "patients"})
    assert configuration(ARMS["median"], written, SCANS, 7).strategy.weights == "uniform"
    assert (
        configuration(ARMS["fedavg"], federation(strategy={"name": "median"}), SCANS, 7).strategy.weights == "capped:2"
    )


def test_baselines_wait_for_one_site_and_end_as_the_federation_does() -> None:
    written = federation(rounds=5, strategy={"name": "median", "min_sites": 3, "average_rounds": 2})
    for arm in ("local", "pooled"):
        made = configuration(ARMS[arm], written, SCANS, 7).strategy
        assert (made.name, made.min_sites, made.average_rounds) == ("fedavg", 1, 2)


def test_what_an_arm_does_not_work_with_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--arms scaffold: strategy\.name scaffold needs training\.optimizer sgd"):
        configuration(ARMS["scaffold"], federation(), SCANS, 7)
    with pytest.raises(ConfigError, match=r"--arms pooled_short: sites make different numbers of steps"):
        configuration(ARMS["pooled_short"], federation(training={"local_epochs": 1}), SCANS, 7)


def test_too_few_sites_for_an_arm_are_refused_with_the_smallest_number() -> None:
    arms = parse_arms("local,fedavg,multi_krum")
    with pytest.raises(ConfigError, match=r"--arms multi_krum: .* needs at least 5 sites .* there are 3"):
        check_configuration(federation(), arms, dict.fromkeys("abc", 4))
    check_configuration(federation(), arms, dict.fromkeys("abcde", 4))
    with pytest.raises(ConfigError, match="gives one site \\(a\\); a comparison needs at least 2"):
        check_configuration(federation(), parse_arms("local,fedavg"), {"a": 4})


def test_personal_arms_keep_the_files_algorithm_and_their_own_options_alone() -> None:
    written = federation(
        strategy={"name": "fedprox"}, personal={"method": "ditto", "ditto_lambda": 2.0}, training={"trainable": "head"}
    )
    ditto = configuration(ARMS["ditto"], written, SCANS, 7)
    assert (ditto.strategy, ditto.personal) == (written.strategy, written.personal)
    assert configuration(ARMS["fedprox"], written, SCANS, 7).personal is None
    assert configuration(ARMS["local"], written, SCANS, 7).personal is None
    with pytest.raises(ConfigError, match=r"--arms fedbn: .* training\.trainable head never trains them"):
        configuration(ARMS["fedbn"], written, SCANS, 7)
    norms = configuration(ARMS["fedbn"], federation(), SCANS, 7).personal
    assert norms is not None and norms.method == "norms"
