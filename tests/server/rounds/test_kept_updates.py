"""Updates that a simulation keeps."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.config.federation import FederationConfig
from common.errors import ConfigError, DamagedFileError
from common.protocol.codec import Result, Task, Vector
from common.weights.encoding import Encoding
from server.rounds.kept_updates import KEPT, kept_rounds, rounds_to_keep
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, FakeNetwork, Sites, app_of, run, run_network, site
from tests.server.rounds.test_coming_and_going import CALM

SITES: Sites = [site("a", 10, 1.0), site("b", 20, 2.0), site("long", 10, 9.0)]


def config(gigabytes: float, rounds: int = 3, **values: object) -> FederationConfig:
    simulation = {"partition": {"method": "iid", "sites": 3}, "keep_updates_gb": gigabytes}
    return tiny.federation(rounds=rounds, simulation=simulation, **values)


@pytest.mark.parametrize("upload", ["float32", "int8"])
def test_a_model_built_again_from_all_updates_is_the_next_one(tmp_path: Path, upload: Encoding) -> None:
    """Updates count as they did: scaled down, and weighted."""
    folder = RunFolder.create(tmp_path / "run")
    run(config(1, transport={"upload": upload}), app_of(SITES), LAYOUT, 3, folder)
    kept = list(kept_rounds(folder.path))
    assert [entry.number for entry in kept] == [1, 2, 3]
    models = [*(entry.model for entry in kept[1:]), folder.load_checkpoint(3, LAYOUT)]
    for entry, following in zip(kept, models, strict=True):
        np.testing.assert_allclose(entry.rebuilt(frozenset(entry.updates)), following, rtol=1e-6)
    np.testing.assert_allclose(kept[0].updates["long"], np.full(4, 2.0), rtol=0.02)
    np.testing.assert_array_equal(kept[1].rebuilt(frozenset()), kept[1].model)
    alone = kept[1].rebuilt(frozenset(["a", "b"])) - kept[1].model
    np.testing.assert_allclose(alone, np.full(4, (1 + 2 * 2.0) / 3), rtol=0.02)


def test_none_are_kept_unless_asked_for_and_none_over_a_network(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    run(config(0), app_of(SITES), LAYOUT, 3, folder)
    assert not (folder.path / KEPT).exists()
    network = FakeNetwork(RunFolder.create(tmp_path / "network"), SITES)
    run_network(config(1), network, LAYOUT, CALM)
    assert len(network.folder.read_rounds()) == 4 and not (network.folder.path / KEPT).exists()


@pytest.mark.parametrize(
    ("gigabytes", "kept"),
    [(0.5, range(1, 11)), (0.45, range(1, 11, 2)), (0.2, range(1, 11, 3)), (0.05, range(1, 11, 10))],
)
def test_as_many_rounds_are_kept_as_fit(gigabytes: float, kept: range) -> None:
    """Three sites and three million weights: 0.048 GB a round."""
    assert rounds_to_keep(config(gigabytes, 10), 3, 3_000_000) == kept
    assert len(kept) * 0.048 <= gigabytes
    assert rounds_to_keep(config(gigabytes, 10), 1, 3_000_000) == range(0)


def test_a_budget_that_holds_no_round_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the updates of one round .* take 0\.048 GB, more than 0\.04"):
        rounds_to_keep(config(0.04), 3, 3_000_000)


def test_a_round_that_a_crash_ended_is_kept_as_it_ended_in_the_end(tmp_path: Path) -> None:
    """The run is killed in round 2 and goes on: the same as one that was never killed."""

    class Killed(BaseException):
        pass

    def dies(task: Task, weights: Vector) -> tuple[Result, Vector | None]:
        if task.round == 2:
            raise Killed
        return SITES[1][2](task, weights)

    folder, whole = (RunFolder.create(tmp_path / name) for name in ("run", "whole"))
    with pytest.raises(Killed):
        run(config(1), app_of([SITES[0], ("b", 20, dies), SITES[2]]), LAYOUT, 3, folder)
    shutil.copytree(folder.path / KEPT / "round_000001", folder.path / KEPT / "round_000002")
    run(config(1), app_of(SITES), LAYOUT, 3, folder)
    run(config(1), app_of(SITES), LAYOUT, 3, whole)
    for found, expected in itertools.zip_longest(kept_rounds(folder.path), kept_rounds(whole.path)):
        np.testing.assert_array_equal(found.model, expected.model)
        assert found.weights == expected.weights
        for name, update in expected.updates.items():
            np.testing.assert_array_equal(found.updates[name], update)


@pytest.mark.parametrize("damage", [b"", b"x" * 17, None])
def test_a_damaged_round_is_named(tmp_path: Path, damage: bytes | None) -> None:
    folder = RunFolder.create(tmp_path / "run")
    run(config(1), app_of(SITES), LAYOUT, 3, folder)
    file = folder.path / KEPT / "round_000002" / "vectors.f32"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(DamagedFileError, match=r"round_000002: is damaged; remove it"):
        list(kept_rounds(folder.path))
