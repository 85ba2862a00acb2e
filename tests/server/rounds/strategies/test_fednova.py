"""FedNova with different numbers of steps against closed forms, and FedAvg's bias beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config.federation import FederationConfig
from common.config.schedule import round_length
from common.protocol.codec import Result, Task, Vector
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, Answer, Sites, app_of, honest, run
from tests.server.rounds.strategies.federated_descent import SIZE, Descent

SCANS = [2, 5, 20]
CURVATURE = 2.0
SMALL: list[dict[str, object]] = [
    {"learning_rate": 0.01},
    {"learning_rate": 0.003, "momentum": 0.8},
    {"learning_rate": 0.006, "momentum": 0.5, "poly_power": 0.9},
]


def federation(name: str, rounds: int = 60, weights: str = "uniform", **training: object) -> FederationConfig:
    defaults = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0, "poly_power": 0.0, "gradient_clip": 0.0}
    steps = {"local_steps": 20, "local_epochs": 1, "batch_size": 1}
    return tiny.federation(rounds, strategy={"name": name, "weights": weights}, training=defaults | steps | training)


def descent(config: FederationConfig, folder: Path) -> Descent:
    goals = 2 + np.random.default_rng(3).standard_normal((3, SIZE))
    return Descent(config, folder, np.full((3, SIZE), CURVATURE), goals, scans=SCANS)


@pytest.mark.parametrize("name", ["fedavg", "fednova"])
def test_rounds_end_at_the_fixed_point_of_the_closed_form(tmp_path: Path, name: str) -> None:
    """A site of K steps goes 1 - (1 - rate * curvature) ** K of its way; FedNova divides that by K."""
    found = descent(federation(name), tmp_path)
    ways = 1 - (1 - 0.1 * CURVATURE) ** np.array(SCANS)
    shares = ways / np.array(SCANS) if name == "fednova" else ways
    np.testing.assert_allclose(found.trained()[0], shares @ found.optima / shares.sum(), atol=1e-3)


@pytest.mark.parametrize("training", SMALL)
def test_with_small_steps_the_optimum_is_that_of_the_loss(tmp_path: Path, training: dict[str, object]) -> None:
    """FedAvg counts a site's gradient as often as it makes steps."""
    errors = {}
    for name in ("fedavg", "fednova"):
        found = descent(federation(name, 80, **training), tmp_path)
        errors[name] = float(np.sqrt(np.mean((found.trained()[0] - found.optimum) ** 2)))
    assert errors["fednova"] < 0.06
    assert errors["fedavg"] > 5 * errors["fednova"]


def test_with_equal_steps_it_is_fedavg(tmp_path: Path) -> None:
    found = [descent(federation(name, 10, local_epochs=None), tmp_path).trained()[0] for name in ("fedavg", "fednova")]
    np.testing.assert_allclose(*found, atol=1e-6)


def stepping(name: str, scans: int, steps: int, update: float) -> tuple[str, int, Answer]:
    plain = honest(name, scans, update)

    def answer(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        result, made = plain(task, weights)
        return replace(result, steps=steps if task.train else 0), made

    return name, scans, answer


def test_a_site_that_says_that_it_made_fewer_steps_is_refused(tmp_path: Path) -> None:
    """Its update would count for more; FedAvg does not look at the steps."""
    sites: Sites = [stepping("a", 5, 5, 1.0), stepping("b", 20, 20, 1.0), stepping("c", 40, 20, 1.0)]
    liar = stepping("liar", 20, 1, 1.0)
    for name, status in (("fednova", "refused"), ("fedavg", "ok")):
        folder = RunFolder.create(tmp_path / name)
        run(federation(name, 1), app_of([*sites, liar]), LAYOUT, 4, folder)
        lines = folder.read_rounds()[0]["sites"]
        assert {site: line["status"] for site, line in lines.items()} == dict.fromkeys("abc", "ok") | {"liar": status}


def test_more_steps_than_the_declared_scans_allow_are_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    run(federation("fedavg", 1), app_of([stepping("a", 5, 5, 1.0), stepping("b", 5, 6, 1.0)]), LAYOUT, 2, folder)
    lines = folder.read_rounds()[0]["sites"]
    assert (lines["a"]["status"], lines["b"]["reason"]) == ("ok", "number-out-of-range")


@pytest.mark.parametrize("name", ["fednova", "scaffold"])
def test_an_update_of_few_steps_is_judged_as_one_of_many(tmp_path: Path, name: str) -> None:
    """Both divide by the length of the steps: as long as the others' after fewer steps, it would count for more."""
    config = federation(name, 1, momentum=0.5)
    few, many = round_length(config, 1, 5), round_length(config, 1, 20)
    assert many > 4.2 * few, "momentum makes late steps longer"
    sites: Sites = [stepping(site, 20, 20, 1.0) for site in "abc"]
    found = {}
    for scans in (1, 5):
        folder = RunFolder.create(tmp_path / str(scans))
        run(config, app_of([*sites, stepping("liar", scans, scans, 1.0)]), LAYOUT, 4, folder)
        lines = folder.read_rounds()[0]["sites"]
        assert all(lines[site]["scale"] == 1 for site in "abc")
        found[scans] = lines["liar"]
    assert (found[1]["status"], found[1]["reason"]) == ("refused", "norm-outlier")
    assert found[5]["scale"] == pytest.approx(few / many, rel=1e-6)


@pytest.mark.parametrize("name", ["fedavg", "fednova", "scaffold"])
def test_an_update_of_many_steps_is_not_too_long(tmp_path: Path, name: str) -> None:
    """With FedNova and SCAFFOLD, lengths are compared by step; with FedNova, the mean is of updates by step."""
    sites = [stepping(site, scans, scans, 0.1 * scans) for site, scans in (("a", 4), ("b", 5), ("c", 20))]
    folder = RunFolder.create(tmp_path / "run")
    run(federation(name, 1), app_of(sites), LAYOUT, 3, folder)
    line = folder.read_rounds()[0]["sites"]["c"]
    assert line["length"] == pytest.approx(4.0, rel=1e-3)
    assert line["scale"] == pytest.approx(0.25 if name == "fedavg" else 1.0, rel=1e-3)
    if name == "fednova":
        np.testing.assert_allclose(folder.load_checkpoint(1, LAYOUT), np.full(4, 0.1 * 29 / 3), rtol=1e-3)


def test_epochs_do_not_go_with_privacy() -> None:
    with pytest.raises(ValueError, match=r"training\.local_epochs does not go with privacy"):
        tiny.federation(training={"local_epochs": 1}, privacy={"epsilon": 8})
