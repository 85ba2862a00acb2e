"""Simulated sites with models of their own: what is kept, what is shared, and that a crash changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.config.federation import load_federation
from common.models.bundle import load_bundle
from common.weights.layout import WeightLayout
from common.weights.part import norm_part
from server.progress.events import Event, SiteDone
from server.run_store.folder import RunFolder
from server.simulation.experiment import SimulationOptions, simulate
from server.simulation.simulated_sites import folder_name
from tests import tiny
from tests.server.simulation import two_contrasts
from tests.server.simulation.two_contrasts import contrast_trainer, federate

NORMS = "personal={method: norms}"
SMALL = ("rounds=2", "training.local_steps=2")


def nothing(event: Event) -> None:
    """Watches nothing."""


def run(folder: Path, *values: str) -> RunFolder:
    """Run the tiny federation; ``values`` are overrides of its file."""
    config = load_federation(tiny.write_federation(folder), [*SMALL, *values])
    simulate(config, SimulationOptions(None, folder / "run", cache=folder / "cache", device="cpu"), nothing)
    return RunFolder.open(folder / "run")


def site_names(folder: RunFolder) -> list[str]:
    return sorted(json.loads((folder.path / "partition.json").read_text())["sites"])


def own_model(folder: RunFolder, site: str) -> dict[str, np.ndarray]:
    weights = load_bundle(folder.path / "personal-models" / site).weights
    return {name: tensor.numpy() for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("norms"), NORMS)


def test_both_scores_stand_in_every_round_after_the_first(norms: RunFolder) -> None:
    first, *later = norms.read_rounds()
    assert first["personal_mean_dice"] is None and len(later) == 2
    for line in later:
        sites = line["sites"].values()
        assert all(site["mean_dice"] is not None and 0 <= site["personal_mean_dice"] <= 1 for site in sites)
        assert line["personal_mean_dice"] == pytest.approx(np.mean([site["personal_mean_dice"] for site in sites]))
    found = json.loads((norms.path / "summary.json").read_text())["personal"]
    assert found["model_round"] == 2 and set(found["sites"]) == set(site_names(norms))
    assert found["mean_dice"] == pytest.approx(later[-1]["personal_mean_dice"])
    assert found["global_mean_dice"] == pytest.approx(later[-1]["mean_dice"])


def test_every_site_has_a_bundle_of_its_own_with_its_score(norms: RunFolder) -> None:
    last = norms.read_rounds()[-1]
    models = []
    for site in site_names(norms):
        bundle = load_bundle(norms.path / "personal-models" / site)
        assert (bundle.provenance["site"], bundle.provenance["round"]) == (site, 2)
        assert bundle.provenance["mean_validation_dice"] == pytest.approx(last["sites"][site]["personal_mean_dice"])
        models.append(bundle.sha256)
    assert len(set(models)) == len(models) == 2


def test_own_norms_differ_and_all_other_weights_are_the_global_ones(norms: RunFolder) -> None:
    layout = norms.layout(norms.read_rounds()[-1]["model_round"])
    part = norm_part(layout)
    shared = norms.map_checkpoint(2, layout)
    assert set(part.take(shared).tolist()) == {0.0, 1.0}, "as they were at first"
    first, second = (own_model(norms, site) for site in site_names(norms))
    flat = [np.concatenate([model[name].reshape(-1) for name in layout.shapes]) for model in (first, second)]
    assert (part.take(flat[0]) != part.take(flat[1])).all() and (part.take(flat[0]) != part.take(shared)).all()
    for vector in flat:
        part.put(vector, part.take(shared))
        np.testing.assert_array_equal(vector, shared)


def test_the_released_model_says_that_its_norms_were_never_trained(norms: RunFolder) -> None:
    bundle = load_bundle(norms.path / "model")
    assert bundle.provenance["personal"] == "norms" and "never trained" in bundle.provenance["note"]
    part = norm_part(WeightLayout({name: tuple(tensor.shape) for name, tensor in bundle.weights.items()}))
    flat = np.concatenate([tensor.numpy().reshape(-1) for tensor in bundle.weights.values()])
    assert set(part.take(flat).tolist()) == {0.0, 1.0}
    scored = next(line for line in norms.read_rounds() if line["model_round"] == bundle.provenance["round"])
    assert bundle.provenance["mean_validation_dice"] == pytest.approx(scored["mean_dice"]), "its own, as it is"


class StopError(Exception):
    """A crash."""


def everything(folder: RunFolder) -> dict[str, bytes]:
    """All models, shared and personal, and what the lines of all rounds say of updates and scores."""
    paths = [*folder.path.glob("checkpoints/*"), *folder.path.glob("personal-models/*/*.safetensors")]
    lines = [
        [site, about["sha256"] if line["phase"] == "train" else "", about["dice"], about["personal_dice"]]
        for line in folder.read_rounds()
        for site, about in line["sites"].items()
    ]
    return {path.name + path.parent.name: path.read_bytes() for path in paths} | {"": json.dumps(lines).encode()}


@pytest.mark.parametrize("method", ["norms", "ditto"])
def test_a_crash_at_any_reply_changes_nothing(tmp_path: Path, method: str) -> None:
    """Also after a site has trained and kept what it trained, in a round that is not committed."""
    config = two_contrasts.federation(personal={"method": method})
    whole = everything(federate(tmp_path / "run", config, make=contrast_trainer))
    assert len(whole) >= 4
    for stop in range(6):
        replies = 0

        def crash(event: Event, last: int = stop) -> None:
            nonlocal replies
            replies += isinstance(event, SiteDone)
            if replies > last:
                raise StopError

        path = tmp_path / str(stop) / "run"
        path.parent.mkdir()
        with pytest.raises(StopError):
            federate(path, config, crash, contrast_trainer)
        assert everything(federate(path, config, make=contrast_trainer)) == whole


def test_where_intensities_differ_own_norms_learn_what_no_single_model_can(tmp_path: Path) -> None:
    """Bright balls here, dark ones there: the scales of the one norm layer must have opposite signs."""
    values = {"rounds": 4, "steps": 10, "rate": 0.1}
    plain = federate(tmp_path / "plain", two_contrasts.federation(**values), make=contrast_trainer)
    config = two_contrasts.federation(**values, personal={"method": "norms"})
    norms = federate(tmp_path / "norms", config, make=contrast_trainer)
    assert all(line["mean_dice"] < 0.6 for line in plain.read_rounds())
    assert norms.read_rounds()[-1]["personal_mean_dice"] > 0.85


def test_where_intensities_differ_ditto_learns_faster_than_the_global_model(tmp_path: Path) -> None:
    config = two_contrasts.federation(3, 6, personal={"method": "ditto"})
    last = federate(tmp_path / "run", config).read_rounds()[-1]
    assert last["personal_mean_dice"] > last["mean_dice"] + 0.03


def test_dittos_global_model_is_that_of_a_run_without_it(tmp_path: Path) -> None:
    plain, ditto = (
        federate(tmp_path / name, two_contrasts.federation(personal=personal))
        for name, personal in (("plain", None), ("ditto", {"method": "ditto"}))
    )
    digests = [
        [site["sha256"] for line in folder.read_rounds() for site in line["sites"].values() if line["phase"] == "train"]
        for folder in (plain, ditto)
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 4
    assert not any((plain.path / "personal-models").rglob("*"))


def test_under_privacy_no_score_of_an_own_model_reaches_the_server(tmp_path: Path) -> None:
    private = run(tmp_path, NORMS, "privacy={epsilon: 4, sample_rate: 0.5}")
    lines = private.read_rounds()
    assert all(line["personal_mean_dice"] is None for line in lines)
    assert all(
        site["status"] == "ok" and not site["personal_dice"] for line in lines for site in line["sites"].values()
    )
    found = json.loads((private.path / "summary.json").read_text())["personal"]
    assert found["mean_dice"] is not None and set(found["sites"]) == set(site_names(private)), "known on this machine"


@pytest.mark.parametrize("name", ["../up", "..", "a/b", "", "é", ".hidden", "x" * 80])
def test_names_that_are_no_folders_stay_inside(name: str, tmp_path: Path) -> None:
    found = (tmp_path / folder_name(name)).resolve()
    assert found.parent == tmp_path.resolve() and folder_name(name) != folder_name(name + "-")
