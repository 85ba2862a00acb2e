"""A whole simulated federation under differential privacy, on tiny phantoms, in this process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.federation import load_federation
from common.imaging.datasets.dataset import find_dataset
from common.imaging.phantoms.dataset import write_phantom_dataset
from server.privacy.forecast import forecast_privacy
from server.progress.display import make_progress
from server.run_store.folder import RunFolder
from server.simulation.experiment import SimulationOptions, simulate
from tests import tiny

EPSILON = 4.0


def run(folder: Path, name: str, *values: str, data: Path | None = None) -> RunFolder:
    """Runs the tiny federation with privacy; ``values`` are overrides of its file."""
    privacy = f"privacy={{epsilon: {EPSILON}, sample_rate: 0.5, patches_per_patient: 2}}"
    overrides = [privacy, "rounds=2", "training.local_steps=2", *values]
    config = load_federation(tiny.write_federation(folder), overrides)
    with make_progress() as display:
        simulate(config, SimulationOptions(data, folder / name, cache=folder / "cache", device="cpu"), display)
    return RunFolder.open(folder / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("private"), "run")


def site_lines(folder: RunFolder) -> list[list[dict[str, Any]]]:
    return [list(line["sites"].values()) for line in folder.read_rounds()]


def test_epsilon_rises_to_what_the_file_allows(finished: RunFolder) -> None:
    rounds = site_lines(finished)
    assert len(rounds) == 3
    for sites in zip(*rounds, strict=True):
        spent = [line["epsilon"] for line in sites]
        assert 0 < spent[0] < spent[1] <= spent[2]
        assert 0.98 * EPSILON < spent[-1] <= EPSILON


def test_no_loss_leaves_and_every_reply_counts(finished: RunFolder) -> None:
    for line in (line for sites in site_lines(finished) for line in sites):
        assert line["status"] == "ok"
        assert line["train_loss"] is None
        assert line["validation_loss"] is None
        assert all(0 <= value <= 1 for value in line["dice"].values())


def test_noise_that_drowns_the_update_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start and in the report, as plan-privacy has it; and not where it does not."""
    drowned = run(tmp_path, "drowned", "rounds=1", "training.local_steps=1")
    told = capsys.readouterr()
    config = load_federation(drowned.path / "federation.yaml")
    layout = json.loads((drowned.path / "summary.json").read_text())["parameters"]
    partition = json.loads((drowned.path / "partition.json").read_text())["sites"]
    patients = {name: len(site["train"]) for name, site in partition.items()}
    forecast = forecast_privacy(config, patients, layout, layout)
    privacy = json.loads((drowned.path / "summary.json").read_text())["privacy"]
    assert (privacy["verdict"], forecast.verdict) == ("drowned", "drowned")
    assert privacy["signal_to_noise"] == pytest.approx(forecast.planned.signal_to_noise)
    assert (told.out + told.err).count("the noise drowns the signal") == 1
    assert "The noise drowns the signal" in (drowned.path / "report.html").read_text(encoding="utf-8")
    calm = run(tmp_path, "calm", "rounds=1", "training.local_steps=1", "training.trainable=head", "privacy.epsilon=100")
    told = capsys.readouterr()
    assert "drowns" not in told.out + told.err
    assert json.loads((calm.path / "summary.json").read_text())["privacy"]["verdict"] != "drowned"


@pytest.mark.parametrize("table", ["patients.csv", "scans.csv"])
def test_scans_of_one_patient_count_as_one_patient(tmp_path: Path, table: str) -> None:
    """By the folder's own table or by the one that the file names; in the split and in what weighs an update."""
    data = write_phantom_dataset(tmp_path / "data", [12], seed=0, shape=(32, 32, 32))
    owners = {case.name: f"p{index // 2}" for index, case in enumerate(find_dataset(data).cases)}
    (data / table).write_text("case,patient\n" + "".join(f"{case},{owner}\n" for case, owner in owners.items()))
    values = ["simulation.partition={method: iid, sites: 2}", "rounds=1"]
    if table != "patients.csv":
        values.append(f"simulation.patients={{file: {table}}}")
    folder = run(tmp_path, "run", *values, data=data)
    sites = json.loads((folder.path / "partition.json").read_text())["sites"]
    sides = [{owners[case] for case in site[side]} for site in sites.values() for side in ("train", "validation")]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 6, "every patient in one place"
    [line, _] = folder.read_rounds()
    assert {name: part["examples"] for name, part in line["sites"].items()} == {
        name: len({owners[case] for case in site["train"]}) for name, site in sites.items()
    }


def test_the_same_seed_gives_the_same_model(finished: RunFolder, tmp_path: Path) -> None:
    again = run(tmp_path, "run")
    first, second = (folder.path / "model" / "model.safetensors" for folder in (finished, again))
    assert first.read_bytes() == second.read_bytes()
    assert [line["dice"] for line in again.read_rounds()] == [line["dice"] for line in finished.read_rounds()]


def test_without_scores_the_last_round_is_released(tmp_path: Path) -> None:
    folder = run(tmp_path, "run", "privacy.validation=off")
    state = folder.load_state()
    assert state is not None
    assert state.best_round is None
    assert not state.stopped_early
    released = json.loads((folder.path / "model" / "model.json").read_text())
    assert released["provenance"]["round"] == 2
    spent = [line["epsilon"] for line in site_lines(folder)[-1]]
    assert np.allclose(spent, EPSILON, rtol=0.02)
    for line in (line for sites in site_lines(folder) for line in sites):
        assert line["status"] == "ok"
        assert line["mean_dice"] is None
