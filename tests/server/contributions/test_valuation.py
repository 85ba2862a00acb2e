"""What sites contributed to models that are built again from kept updates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context

from client.runner.client_app import Site, make_client_app
from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.models.unet3d import build_model
from common.protocol.codec import Result, Vector
from common.weights.encoding import encode_vector
from server.cli.entry import main
from server.contributions.valuation import Contributions, Sampling, contributions
from server.rounds.aggregation import StoredUpdates
from server.rounds.kept_updates import keep_round, kept_rounds
from server.run_store.folder import RunFolder, RunState
from tests import tiny
from tests.server.fake_sites import SharedApp, run

RESULT = Result("", "r1", 1, 10, 2, 1, 0.5, 0.5, {1: 0.5}, 0.0, 0.0, 0.0, 0.0)
SIZE = 50
BEST = np.random.default_rng(0).normal(size=SIZE)


def federation(**values: object) -> FederationConfig:
    simulation = {"partition": {"method": "iid", "sites": 3}, "keep_updates_gb": 1}
    return tiny.federation(**{"simulation": simulation, **values})  # type: ignore[arg-type]


def distance(weights: Vector) -> float:
    """A quadratic whose best model is known."""
    return -float(np.sum((weights - BEST) ** 2))


def keep(
    folder: Path, number: int, model: np.ndarray, updates: Mapping[str, np.ndarray], counts: Sequence[float]
) -> None:
    contents = {
        site: np.concatenate([data for _, data in encode_vector(vector.astype(np.float32), "float32")])
        for site, vector in updates.items()
    }
    weights = dict(zip(updates, counts, strict=True))
    stored = StoredUpdates(dict.fromkeys(updates, RESULT), weights, contents, SIZE, "float32")
    keep_round(folder, number, model.astype(np.float32), stored)


def towards_best(model: np.ndarray, share: float) -> np.ndarray:
    return share * (BEST - model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "federation.yaml").write_text(federation().resolved(), encoding="utf-8")
    return tmp_path


def found_in(folder: Path, sampling: Sampling | None = None) -> Contributions:
    return contributions(folder, distance, sampling or Sampling(), lambda done, total: None)


def write_rounds(folder: Path, sites: Sequence[str], rounds: int = 2) -> None:
    """Two good sites (a and its double, called copy), a slow one, and others that send noise."""
    rng, model = np.random.default_rng(1), np.zeros(SIZE)
    share = {"a": 0.5, "copy": 0.5, "slow": 0.1}
    for number in range(1, rounds + 1):
        updates = {
            site: towards_best(model, share[site]) if site in share else rng.normal(0, 0.5, SIZE) for site in sites
        }
        keep(folder, number, model, updates, [2.0] * len(sites))
        model = model + np.mean(list(updates.values()), axis=0)


def test_values_are_those_of_all_orders_of_the_sites(folder: Path) -> None:
    """By another way: the mean over all orders, of means that NumPy computes."""
    rng, expected = np.random.default_rng(2), dict.fromkeys("abc", 0.0)
    for number, counts in enumerate(([1, 2, 3], [5, 1, 1]), start=1):
        model, updates = rng.normal(size=SIZE), rng.normal(size=(3, SIZE))
        keep(folder, number, model, dict(zip("abc", updates, strict=True)), counts)
        for order in itertools.permutations(range(3)):
            before = distance(model.astype(np.float32))
            for place, row in enumerate(order):
                some = list(order[: place + 1])
                mean = np.average(updates[some], axis=0, weights=np.array(counts)[some])
                after = distance((model + mean).astype(np.float32))
                expected["abc"[row]] += (after - before) / 6
                before = after
    found = found_in(folder)
    assert {site: part.shapley for site, part in found.sites.items()} == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert (found.rounds, found.orders, found.scored) == ((1, 2), 0, 2 * 2**3)


@pytest.mark.parametrize("sites", [["a", "copy", "noise", "slow"], ["a", "copy", "noise", "slow", "more noise"]])
def test_noise_is_worth_least_a_double_as_much_as_its_twin_and_all_add_up(folder: Path, sites: list[str]) -> None:
    write_rounds(folder, sites)
    found = found_in(folder, Sampling(orders=200))
    value = {site: part.shapley for site, part in found.sites.items()}
    assert min(value, key=value.__getitem__).endswith("noise") and value["slow"] < value["a"]
    sampled = len(sites) > 4
    slack = 3 * math.hypot(found.sites["a"].error, found.sites["copy"].error) if sampled else 1e-4
    assert value["a"] == pytest.approx(value["copy"], abs=slack) and (found.orders == 200) == sampled
    assert all((part.error > 0) == sampled for part in found.sites.values())
    # The first round began at zero, and the last model is the one that a third round would have begun with.
    last = list(kept_rounds(folder))[-1].rebuilt(frozenset(sites))
    assert math.fsum(value.values()) == pytest.approx(found.gain)
    assert found.gain == pytest.approx(distance(last) - distance(np.zeros(SIZE, np.float32)), rel=1e-5)
    assert found.sites["a"].without > 0 > found.sites["noise"].without


def test_a_site_gets_nothing_for_a_round_without_it(folder: Path) -> None:
    keep(folder, 1, np.zeros(SIZE), {"a": towards_best(np.zeros(SIZE), 0.5), "b": np.ones(SIZE)}, [1, 1])
    before = found_in(folder).sites
    keep(folder, 2, np.zeros(SIZE), {"b": np.ones(SIZE), "c": -np.ones(SIZE)}, [1, 1])
    after = found_in(folder).sites
    assert after["a"] == before["a"] and after["b"] != before["b"] and set(after) == set("abc")


def test_fewer_rounds_are_spread_over_the_run(folder: Path) -> None:
    write_rounds(folder, ["a", "slow"], rounds=6)
    assert found_in(folder, Sampling(rounds=3)).rounds == (1, 3, 5)
    assert found_in(folder, Sampling(rounds=9)).rounds == (1, 2, 3, 4, 5, 6)


def test_a_run_without_kept_updates_says_what_to_do(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"kept no updates; .* simulation\.keep_updates_gb=10"):
        found_in(folder)


def test_models_of_other_algorithms_cannot_be_built_again(folder: Path) -> None:
    config = federation(strategy={"name": "fedadam"})
    (folder / "federation.yaml").write_text(config.resolved(), encoding="utf-8")
    write_rounds(folder, ["a", "slow"])
    with pytest.raises(ConfigError, match=r"strategy\.name fedadam: its models cannot be built again"):
        found_in(folder)


# Real training.
def test_a_site_whose_labels_are_noise_is_worth_least(tmp_path: Path) -> None:
    """Three sites with balls, and one whose label maps have nothing to do with its scans."""
    config = federation(rounds=2, training={"local_steps": 16}, strategy={"weights": "uniform"})
    trainer = tiny.trainer(rounds=2, local_steps=16, learning_rate=0.02)
    made = [tiny.site(name, seed, config.digest()) for seed, name in enumerate(["a", "b", "c", "noise"], start=1)]
    sites = [Site(site.name, site.train_cases, site.validation_cases, site.seed, site.digest, trainer) for site in made]
    rng = np.random.default_rng(0)
    for case in sites[3].train_cases:
        np.asarray(case.label)[:] = rng.random(case.label.shape) < 0.065

    def opened(context: Context) -> Site:
        return sites[int(context.node_config["partition-id"])]

    folder = RunFolder.create(tmp_path / "run")
    folder.write_text("federation.yaml", config.resolved())
    folder.save_checkpoint(0, trainer.layout.flatten(build_model(tiny.plan().model).state_dict()), trainer.layout)
    folder.commit(RunState(run="r1", digest=config.digest(), started="now"))
    run(config, SharedApp(lambda weights: make_client_app(opened, weights)), trainer.layout, 4, folder)

    def score(weights: Vector) -> float:
        return float(np.mean([trainer.validate(weights, site.validation_cases).dice[1] for site in sites[:3]]))

    found = contributions(folder.path, score, Sampling(), lambda done, total: None)
    value = {site: part.shapley for site, part in found.sites.items()}
    assert value["noise"] < 0 < min(value[name] for name in "abc")
    first = next(iter(kept_rounds(folder.path))).model
    assert found.gain == pytest.approx(score(folder.load_checkpoint(2, trainer.layout)) - score(first), abs=1e-3)


def test_the_command_says_what_the_rounds_gained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation_file, out = tiny.write_federation(tmp_path), tmp_path / "run"
    simulate = ["simulate", str(federation_file), "--out", str(out), "--no-cache", "--device", "cpu"]
    assert main([*simulate, "--set", "simulation.keep_updates_gb=1", "--set", "training.learning_rate=0.01"]) == 0
    capsys.readouterr()
    command = ["contributions", str(out), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((out / "contributions.json").read_text(encoding="utf-8")) == found
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found["gain"] == pytest.approx(lines[-1]["mean_dice"] - lines[0]["mean_dice"], abs=2e-3)
    assert found["rounds"] == [1, 2, 3] and found["scored"] == 3 * 2 ** len(found["sites"])
    assert main([*command, "--rounds", "1", "--patients", "1"]) == 0
    text = capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What each site contributed" in page and "(at most 1 validation scan per site)" in page
    assert "mean Dice gained in 1 round" in text and "at most 1 validation scan" in text
    assert main([*command, "--orders", "1"]) == 2
    assert "--orders 1: write 2 or more" in capsys.readouterr().err
