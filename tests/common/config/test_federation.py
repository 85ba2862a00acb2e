"""Federation files: every mistake is named with its key, and every default is written out."""

from pathlib import Path

import pytest
import yaml

from common.config.federation import FederationConfig, load_federation
from common.errors import ConfigError

MINIMAL = """
name: test
rounds: 3
simulation:
  partition: {method: iid, sites: 2}
"""
EXAMPLES = sorted((Path(__file__).parents[3] / "deploy" / "examples").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "federation.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    config = load_federation(write(tmp_path, MINIMAL))
    assert config.rounds == 3
    assert config.training.local_steps == 40


def test_resolved_file_reads_back_as_the_same_federation(tmp_path: Path) -> None:
    config = load_federation(write(tmp_path, MINIMAL))
    again = load_federation(write(tmp_path, config.resolved()))
    assert again == config
    assert again.digest() == config.digest()


def test_an_algorithm_has_its_own_options_and_their_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "strategy: {name: fedadam, tau: 0.5, beta_1: null}\n")
    config = load_federation(path)
    expected = {"server_learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.5}
    assert config.strategy.options == expected
    again = load_federation(write(tmp_path, config.resolved()))
    assert (again, again.digest()) == (config, config.digest())
    assert config.digest() != load_federation(path, ["strategy.tau=0.6"]).digest()


def test_fedavg_is_written_as_before_it_had_company(tmp_path: Path) -> None:
    """New keys would change the digest of every approved federation."""
    written = yaml.safe_load(load_federation(write(tmp_path, MINIMAL)).resolved())["strategy"]
    assert list(written) == ["name", "weights", "min_sites", "min_fraction", "max_failed_rounds"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = load_federation(path)
    assert config.simulation is not None or config.network is not None


def test_examples_exist() -> None:
    assert {path.name for path in EXAMPLES} >= {"phantom.yaml", "hippocampus.yaml", "hippocampus-dirichlet.yaml"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("roundz: 3", "roundz: unknown key; did you mean rounds?"),
        ("training: {lerning_rate: 0.1}", "training.lerning_rate: unknown key; did you mean learning_rate?"),
        ("training: {batch_size: 0}", "training.batch_size: must be at least 1 (got 0)"),
        ("training: {batch_size: two}", "training.batch_size: must be 'auto', or a whole number"),
        (
            "training: {batch_size: auto, memory_gb: 4, local_epochs: 1}",
            "local_epochs needs a number for training.batch",
        ),
        ("training: {optimizer: adam}", "training.optimizer: must be 'adamw' or 'sgd' (got 'adam')"),
        ("training: 7", "training:"),
        ("seed: -1", "seed:"),
        ("labels: {0: background}", "labels.0"),
        (
            "labels: {1: {name: liver}}",
            "labels.1: has no code: add it (code: [SCT, 10200004, Liver]), or write the name alone",
        ),
        ("labels: {1: {code: [SCT, 1, Liver]}}", "labels.1.name: is missing; add it"),
        ("labels: {1: {name: '', code: [SCT, 1, Liver]}}", "labels.1.name: must be a name of printable characters"),
        ("labels: {1: {name: liver, code: SCT}}", "labels.1.code: must be [scheme, value, meaning], such as"),
        ("labels: {1: {name: liver, code: [SCT, 1]}}", "labels.1.code: must be [scheme, value, meaning], such as"),
        ("labels: {1: {name: liver, code: [SCT, '', Liver]}}", "labels.1.code.value: must not be empty"),
        ("labels: {1: {name: liver, code: ['', 1, Liver]}}", "labels.1.code.scheme: must not be empty"),
        ("labels: {1: {name: liver, code: [SCT, 1, '']}}", "labels.1.code.meaning: must not be empty"),
        (
            "labels: {1: {name: liver, code: [SCT, 1.5, Liver]}}",
            "labels.1.code.value: must be text; write it in quotes",
        ),
        ("labels: {1: {name: liver, code: [SCT, true, Liver]}}", "labels.1.code.value: must be text"),
        ("labels: {1: {name: liver, code: [SCT, 12345678901234567, x]}}", "labels.1.code.value: must have at most 16"),
        (f"labels: {{1: {{name: liver, code: [{'S' * 17}, 1, x]}}}}", "labels.1.code.scheme: must have at most 16"),
        (f"labels: {{1: {{name: liver, code: [SCT, 1, {'x' * 65}]}}}}", "labels.1.code.meaning: must have at most 64"),
        ('labels: {1: {name: liver, code: [SCT, 1, "a\\eb"]}}', "labels.1.code.meaning: must be printable characters"),
        ("labels: {1: {name: liver, code: [SCT, 1\\2, Liver]}}", "labels.1.code.value: must be printable characters"),
        ("labels: {1: {name: liver, code: [SCT, ' 1', Liver]}}", "labels.1.code.value: must not begin or end with"),
        ("labels: {1: {name: liver, code: [ŚCT, 1, Liver]}}", "labels.1.code.scheme: must be ASCII"),
        ("labels: {1: {name: liver, code: {scheme: SCT, value: 1}}}", "labels.1.code.meaning: is missing; add it"),
        (
            "labels: {1: {name: a, code: [SCT, 1, A]}, 2: {name: b, code: [SCT, '1', B]}}",
            "labels 1 and 2 have the same",
        ),
        ("model: {patch_size: [40, 56]}", "model.patch_size"),
        ("preprocessing: {spacing: fine}", "preprocessing.spacing"),
        (
            "simulation: {partition: {method: alphabet, sites: 2}}",
            "simulation.partition.method: must be one of column, iid, quantity, label, scanner (got 'alphabet')",
        ),
        ("simulation: {partition: {sites: 2}}", "simulation.partition.method: must be one of column, iid,"),
        ("simulation: {partition: {method: iid}}", "simulation.partition.sites: is missing"),
        ("simulation: {partition: {method: iid, sites: 0}}", "simulation.partition.sites"),
        (
            "simulation: {partition: {method: scanner, sites: 2, shifts: [{gamma: 1}]}}",
            "shifts has 1 entry, sites is 2",
        ),
        ("early_stop: {patience: 0}", "early_stop.patience"),
        ("strategy: {weights: capped}", "strategy.weights:"),
        ("strategy: {weights: capped:0}", "strategy.weights:"),
        ("strategy: {weights: {north: 0}}", "strategy.weights.north"),
        ("strategy: {name: fedsgd}", "strategy.name: must be 'fedavg', 'fedprox', 'fednova'"),
        ("strategy: {name: [fedavg]}", "strategy.name: must be 'fedavg', 'fedprox', 'fednova'"),
        ("strategy: {beta_1: 0.5}", "strategy: beta_1 is an option of fedadam, fedyogi, and name is fedavg; remove it"),
        ("strategy: {name: fedavgm, tau: 0.1}", "strategy: tau is an option of fedadam, fedyogi, and name is fedavgm"),
        ("strategy: {name: median, weights: patients}", "strategy: median counts all sites alike; remove weights"),
        ("strategy: {name: multi_krum, malicious_sites: 0}", "strategy.malicious_sites: must be at least 1"),
        ("strategy: {name: fedadam, beta_2: 1}", "strategy.beta_2: must be less than 1"),
        ("strategy: {name: fedadam, beta_3: 0.5}", "strategy.beta_3: unknown key; did you mean beta_"),
        ("strategy: {name: fedavgm, server_momentum: true}", "strategy.server_momentum: must be a number"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, change: str, complaint: str) -> None:
    content = yaml.safe_load(MINIMAL) | yaml.safe_load(change)
    path = write(tmp_path, yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_federation(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("name: a\nrounds: 3\nrounds: 4\n", "line 3: duplicate key 'rounds'"),
        ("rounds: 3\n", "name: is missing"),
    ],
)
def test_a_file_that_is_no_federation_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(write(tmp_path, text))
    assert complaint in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_federation(tmp_path / "nothing.yaml")


def test_anchors_have_a_place_of_their_own(tmp_path: Path) -> None:
    text = "x: &t {local_steps: 7, batch_size: 3}\nx-more: [1]\n" + MINIMAL + "training: {<<: *t, batch_size: 1}\n"
    config = load_federation(write(tmp_path, text))
    assert (config.training.local_steps, config.training.batch_size) == (7, 1)


def test_an_override_finds_a_key_that_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "labels: {1: anterior, 2: posterior}\n")
    assert load_federation(path, ["labels.1=front"]).labels == {1: "front", 2: "posterior"}


def test_overrides_replace_single_values(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load_federation(path, ["rounds=5", "training.learning_rate=0.1", "early_stop.patience=2"])
    assert (config.rounds, config.training.learning_rate) == (5, 0.1)
    assert config.early_stop is not None
    assert config.early_stop.patience == 2


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rounds", "key.path=value"),
        ("=3", "key.path=value"),
        ("rounds.first=3", "rounds is a single value"),
        ("rounds=[", "not valid YAML"),
        ("rounds=many", "rounds: must be a whole number"),
        ("round=3", "did you mean rounds?"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path: Path, override: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_federation(write(tmp_path, MINIMAL), [override])
    assert complaint in str(caught.value)


def test_digest_changes_with_what_decides_the_result(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    digests = {load_federation(path, [item]).digest() for item in ("seed=1", "seed=2", "training.batch_size=3")}
    assert len(digests) == 3
    assert load_federation(path, ["description=other"]).digest() == load_federation(path).digest()


def test_configuration_cannot_be_changed_in_place(tmp_path: Path) -> None:
    config: FederationConfig = load_federation(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.rounds = 4  # type: ignore[misc]


@pytest.mark.parametrize("counts", [{"north": 3}, {"north": 3, "south": 4, "east": 5}])
def test_numbers_of_patients_must_be_given_for_every_site_and_no_other(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"strategy\.weights must name every site"):
        FederationConfig.model_validate(network(2) | {"strategy": {"weights": counts, "min_sites": 2}})


def network(sites: int) -> dict[str, object]:
    names = ["north", "south", "east", "west"][:sites]
    return {"name": "a", "rounds": 1, "network": {"address": "localhost", "sites": names}}


def test_over_a_network_a_round_needs_three_sites_unless_the_file_says_otherwise() -> None:
    assert FederationConfig.model_validate(network(4)).strategy.min_sites == 3
    with_fraction = FederationConfig.model_validate(network(4) | {"strategy": {"min_fraction": 0.5}})
    assert (with_fraction.strategy.min_sites, with_fraction.strategy.min_fraction) == (3, 0.5)
    assert FederationConfig.model_validate(network(2) | {"strategy": {"min_sites": 1}}).strategy.min_sites == 1
    assert FederationConfig.model_validate({"name": "a", "rounds": 1}).strategy.min_sites == 1


@pytest.mark.parametrize("content", [network(2), network(1), network(2) | {"strategy": {"min_sites": 3}}])
def test_more_updates_than_there_are_sites_are_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"strategy\.min_sites is 3 and network\.sites names"):
        FederationConfig.model_validate(content)
