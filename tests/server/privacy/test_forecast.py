"""What plan-privacy foretells: the ratio against simulated noise, the noise against a closed form, and its words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from common.config.federation import FederationConfig
from common.errors import ConfigError
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.models.unet3d import build_model
from common.planning.resolve import plan_from_config
from common.privacy.calibration import noise_for
from server.cli.entry import main
from server.privacy.forecast import (
    DROWNED_FROM_MODEL,
    DROWNED_FROM_NOTHING,
    PROMISING_FROM_MODEL,
    PROMISING_FROM_NOTHING,
    forecast_privacy,
    renyi_noise,
    signal_to_noise,
    verdict_of,
)
from server.privacy.forecast_text import describe
from tests import tiny

FEDERATION = """
name: private
rounds: 5
training: {local_steps: 2}
model: {channels: [8, 16], groups: 4}
privacy: {epsilon: 8, sample_rate: 0.5}
simulation:
  phantom: {cases_per_site: [20, 11], shape: [16, 16, 16]}
  partition: {method: column, file: sites.csv, column: site, validation_fraction: 0.25}
"""


def gaussian_noise(epsilon: float, delta: float, steps: int) -> float:
    """The least noise multiplier of ``steps`` Gaussian mechanisms on everybody, exactly (Balle and Wang 2018)."""

    def spent(multiplier: float) -> float:
        mu = math.sqrt(steps) / multiplier
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)) - delta

    return float(brentq(spent, 0.05, 1000))


def private(**values: object) -> FederationConfig:
    return tiny.federation(rounds=5, training={"local_steps": 2}, privacy={"epsilon": 8, "sample_rate": 0.5, **values})


def test_the_ratio_is_that_of_simulated_updates() -> None:
    """Every step adds the same unit vector, as clipped gradients that agree would, and the noise of the mechanism."""
    patients, rate, multiplier, steps, parameters = (40, 10, 25), 0.3, 1.7, 12, 2000
    rng = np.random.default_rng(0)
    direction = np.zeros(parameters)
    direction[0] = 1.0
    signal, noise = np.zeros(parameters), np.zeros(parameters)
    for count in patients:
        for _ in range(steps):
            weight = count / sum(patients)
            signal += weight * direction
            noise += weight * rng.normal(0, multiplier, parameters) / (rate * count)
    measured = float(np.linalg.norm(signal) / np.linalg.norm(noise))
    # The noise's norm varies by 1 / sqrt(2 d) = 1.6 %; six times that is never seen.
    assert signal_to_noise(patients, rate, multiplier, steps, parameters) == pytest.approx(measured, rel=0.1)


def test_the_ratio_in_closed_form() -> None:
    patients, rate, multiplier, steps, parameters = (117, 37, 23), 0.4, 2.5, 60, 4321
    expected = math.sqrt(steps) * rate * sum(patients) / (multiplier * math.sqrt(parameters * len(patients)))
    assert signal_to_noise(patients, rate, multiplier, steps, parameters) == pytest.approx(expected)


@pytest.mark.parametrize(("epsilon", "steps"), [(1.0, 1), (8.0, 100), (50.0, 9)])
def test_noise_by_renyi_accounting_is_never_less_than_the_exact(epsilon: float, steps: int) -> None:
    exact = gaussian_noise(epsilon, 1e-5, steps)
    assert exact <= renyi_noise(epsilon, 1e-5, 1.0, steps) <= 1.2 * exact


def test_noise_by_renyi_accounting_bounds_that_of_the_plan() -> None:
    tight = noise_for(4.0, 1e-5, 0.2, 50)
    assert tight <= renyi_noise(4.0, 1e-5, 0.2, 50) <= 1.15 * tight


def test_the_forecast_of_a_federation() -> None:
    forecast = forecast_privacy(private(), {"north": 30, "south": 10}, 5000, 1000)
    assert forecast.expected_batch == {"north": 15.0, "south": 5.0}
    assert forecast.planned.steps == 10
    assert forecast.planned.gradients == 200
    assert forecast.planned.noise_multiplier == noise_for(8, 1e-5, 0.5, 10)
    assert forecast.planned.signal_to_noise == pytest.approx(
        signal_to_noise((30, 10), 0.5, forecast.planned.noise_multiplier, 10, 1000, weights=(20, 10))
    )
    assert forecast.share_of_enough == pytest.approx(forecast.planned.signal_to_noise / PROMISING_FROM_NOTHING)
    assert 7.9 < forecast.epsilon <= 8
    assert forecast.epsilon <= forecast.epsilon_rdp < 10
    assert forecast.best.sample_rate == 1.0
    assert (forecast.best_affordable.steps, forecast.best_affordable.gradients) == (5, 200)
    assert forecast.best.steps == max(setting.steps for setting in forecast.alternatives)
    assert forecast.best.signal_to_noise >= forecast.best_affordable.signal_to_noise * (1 - 1e-9)
    assert forecast.validation_noise is not None


def test_more_patients_fewer_parameters_and_a_larger_budget_raise_the_ratio() -> None:
    def ratio(patients: int = 30, parameters: int = 1000, epsilon: float = 8) -> float:
        return forecast_privacy(private(epsilon=epsilon), {"north": patients}, 5000, parameters).planned.signal_to_noise

    usual = ratio()
    assert ratio(patients=60) == pytest.approx(2 * usual)
    assert ratio(parameters=250) == pytest.approx(2 * usual)
    assert ratio(epsilon=20) > 1.2 * usual


@pytest.mark.parametrize(
    ("from_model", "drowned", "enough"),
    [
        (True, DROWNED_FROM_MODEL, PROMISING_FROM_MODEL),
        (False, DROWNED_FROM_NOTHING, PROMISING_FROM_NOTHING),
    ],
)
def test_verdicts(from_model: bool, drowned: float, enough: float) -> None:
    ratios = (0.99 * drowned, drowned, 0.99 * enough, enough)
    assert [verdict_of(ratio, from_model) for ratio in ratios] == ["drowned", "doubtful", "doubtful", "promising"]


def test_the_verdict_in_words() -> None:
    few = forecast_privacy(private(), {"north": 10}, 350_000, 350_000)
    assert "the noise drowns the signal" in describe(few)
    many = forecast_privacy(private(), {"north": 5000}, 350_000, 2_000)
    assert "worth trying" in describe(many)


def test_a_delta_above_one_patient_is_warned_of() -> None:
    patients = {"north": 1000, "south": 5000}
    assert "WARNING: delta 0.009 is more than 1/5000" in describe(
        forecast_privacy(private(delta=0.009), patients, 9, 9)
    )
    assert "WARNING" not in describe(forecast_privacy(private(), patients, 9, 9))


def test_no_scores_no_noise_on_them() -> None:
    forecast = forecast_privacy(private(validation="off"), {"north": 30}, 5000, 1000)
    assert forecast.validation_noise is None
    assert "no scores leave the sites" in describe(forecast)


def test_a_federation_without_privacy_is_refused() -> None:
    with pytest.raises(ConfigError, match="privacy: is missing"):
        forecast_privacy(tiny.federation(), {"north": 30}, 5000, 1000)


def run(folder: Path, *arguments: str, text: str = FEDERATION) -> int:
    path = folder / "federation.yaml"
    path.write_text(text, encoding="utf-8")
    return main(["plan-privacy", str(path), "--cache", str(folder / "cache"), *arguments])


def test_the_command_counts_the_patients_of_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["patients"] == {"phantom-site-a": 15, "phantom-site-b": 9}
    assert answer["planned"]["sample_rate"] == 0.5


def test_the_command_reads_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_phantom_dataset(tmp_path / "data", [6, 5], 0, (16, 16, 16))
    assert run(tmp_path, "--data", str(data), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["patients"] == {"phantom-site-a": 5, "phantom-site-b": 4}
    assert answer["notes"] == []


def test_only_trained_parameters_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FEDERATION + "channels: [t1]\nlabels: {1: ball}\npreprocessing: {spacing: [1, 1, 1]}\n"
    text = text.replace("groups: 4}", "groups: 4, patch_size: [16, 16, 16]}")
    answers = []
    for trainable in ("all", "head"):
        assert (
            run(tmp_path, "--patients", "40,20", "--set", f"training.trainable={trainable}", "--json", text=text) == 0
        )
        answers.append(json.loads(capsys.readouterr().out))
    config = FederationConfig.model_validate(
        {"name": "x", "rounds": 1, "channels": ["t1"], "labels": {1: "ball"}, "preprocessing": {"spacing": [1, 1, 1]}}
        | {"model": {"channels": [8, 16], "groups": 4, "patch_size": [16, 16, 16]}}
    )
    network = build_model(plan_from_config(config).model)
    assert answers[0]["trained_parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert answers[1]["trained_parameters"] == 8 * 2 + 2  # the finest feature map's channels to two classes
    assert answers[1]["parameters"] == answers[0]["parameters"]
    ratios = [answer["planned"]["signal_to_noise"] for answer in answers]
    assert ratios[1] / ratios[0] == pytest.approx(math.sqrt(answers[0]["parameters"] / 18))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--patients", "40,x"], "--patients 40,x: give positive whole numbers"),
        (["--patients", "40,0"], "--patients 40,0: give positive whole numbers"),
        (["--patients", " "], "give positive whole numbers"),
        (["--set", "privacy=null"], "privacy: is missing"),
        (["--set", "privacy.epsilon=-1"], "privacy.epsilon: must be more than 0"),
        (["--set", "simulation.phantom=null"], "--patients or --data: one is needed"),
        (["--set", "simulation.partition={method: label, sites: 2}"], "simulation.partition depends on the scans"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *arguments) != 0
    errors = capsys.readouterr().err
    assert complaint in errors
    assert "Traceback" not in errors
