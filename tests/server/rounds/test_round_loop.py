"""The round loop over Flower's real apps: honest sites, lying sites, failing sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from client.runner.client_app import Site, SiteWeights, make_client_app
from common.protocol.codec import Hello, Task, pack, to_record
from common.weights.encoding import PIECE_BYTES
from common.weights.store import MemoryStore
from server.rounds.quarantine import release
from server.rounds.round_loop import FederationError
from server.run_store.folder import RunFolder
from server.simulation.inline_grid import InlineGrid
from tests import tiny
from tests.server.fake_sites import LAYOUT, SharedApp, Silent, app_of, begin, broken, honest, run, site


@pytest.mark.parametrize(
    ("weights", "counted"),
    [("patients", (30, 10)), ("capped:2", (20, 10)), ("uniform", (1, 1)), ({"a": 1, "b": 4}, (1, 4))],
)
def test_updates_count_as_the_file_says(tmp_path: Path, weights: object, counted: tuple[int, int]) -> None:
    folder = RunFolder.create(tmp_path / "run")
    answers = [("a", 30, honest("a", 30, 1.0)), ("b", 10, honest("b", 10, 1.2))]
    run(tiny.federation(rounds=2, strategy={"weights": weights}), app_of(answers), LAYOUT, 2, folder)
    mean = np.average([1.0, 1.2], weights=counted)
    np.testing.assert_allclose(folder.load_checkpoint(2, LAYOUT), np.full(4, 2 * mean), rtol=1e-5)


def test_updates_that_are_equal_to_each_other_and_to_the_model_are_each_counted(tmp_path: Path) -> None:
    """They have one digest, and in a simulation one store: whoever drops the one must not drop the other."""
    folder = RunFolder.create(tmp_path / "run")
    sites = [site(name, 10, 1.0) for name in "abc"]
    run(tiny.federation(rounds=3), app_of(sites), LAYOUT, 3, folder)
    np.testing.assert_allclose(folder.load_checkpoint(3, LAYOUT), np.full(4, 3.0), rtol=1e-6)
    assert {part["status"] for line in folder.read_rounds() for part in line["sites"].values()} == {"ok"}


def test_one_line_a_round_and_one_for_the_final_scores(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    run(tiny.federation(rounds=2), app_of([("a", 3, honest("a", 3, 1.0))]), LAYOUT, 1, folder)
    lines = folder.read_rounds()
    assert [(line["round"], line["phase"], line["model_round"]) for line in lines] == [
        (1, "train", 0),
        (2, "train", 1),
        (3, "evaluate", 2),
    ]
    assert lines[-1]["train_loss"] is None
    model = update = 4 * 4
    assert [line["bytes_down"] for line in lines] == [model] * 3
    assert [line["bytes_up"] for line in lines] == [update, update, 0]


def test_the_best_round_is_the_one_whose_weights_scored_best(tmp_path: Path) -> None:
    """Weights grow by 1 a round and are best at 2: round 2's model is kept, though rounds go on."""
    folder = RunFolder.create(tmp_path / "run")
    answer = honest("a", 3, 1.0, lambda weights: 1 - abs(float(weights[0]) - 2) / 10)
    run(tiny.federation(rounds=5), app_of([("a", 3, answer)]), LAYOUT, 1, folder)
    state = folder.load_state()
    assert state is not None
    assert (state.best_round, state.best_mean_dice) == (2, pytest.approx(1.0))
    np.testing.assert_allclose(folder.load_checkpoint(2, LAYOUT), np.full(4, 2.0), rtol=1e-6)
    assert state.final_mean_dice == pytest.approx(0.7)


@pytest.mark.parametrize(("epsilon", "released"), [(8.0, 5), (100.0, 3)])
def test_under_privacy_a_model_is_not_set_aside_for_what_may_be_noise(
    tmp_path: Path, epsilon: float, released: int
) -> None:
    """As above, but two patients' scores have noise: at epsilon 8 it explains everything, at 100 a loss of 0.16."""
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=5, privacy={"epsilon": epsilon, "delta": 1e-5, "max_grad_norm": 1.0})
    scored = honest("a", 3, 1.0, lambda weights: 1 - abs(float(weights[0]) - 2) / 10)

    def private(task: Task, weights: np.ndarray) -> tuple[object, np.ndarray | None]:
        result, update = scored(task, weights)
        return replace(result, train_loss=math.nan, validation_loss=math.nan, epsilon=1.0), update

    run(config, app_of([("a", 3, private)]), LAYOUT, 1, folder)  # type: ignore[list-item]
    state = folder.load_state()
    assert state is not None
    assert (state.best_round, state.highest_median_dice) == (released, pytest.approx(1.0))
    assert state.best_mean_dice == pytest.approx(1 - abs(released - 2) / 10)


def test_early_stop_ends_a_run_that_does_not_get_better(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=50, early_stop={"patience": 3, "min_delta": 0.01})
    answer = honest("a", 3, 1.0, lambda weights: min(float(weights[0]), 2.0) / 4)
    run(config, app_of([("a", 3, answer)]), LAYOUT, 1, folder)
    state = folder.load_state()
    assert state is not None
    assert state.stopped_early
    assert (state.best_round, state.round) == (2, 6)


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("nan", "refused", "not-finite"),
        ("short", "refused", "protocol"),
        ("unsent", "refused", "missing-update"),
        ("greedy", "refused", "examples-differ"),
        ("replay", "refused", "wrong-round"),
        ("foreign", "refused", "wrong-run"),
        ("mask", "refused", "wrong-site"),
        ("huge", "refused", "norm-outlier"),
        ("empty", "refused", "missing-update"),
        ("proud", "refused", "wrong-labels"),
        ("glad", "refused", "number-out-of-range"),
        ("busy", "refused", "number-out-of-range"),
        ("crash", "failed", "internal"),
    ],
)
def test_one_bad_site_changes_nothing_for_the_others(tmp_path: Path, kind: str, status: str, reason: str) -> None:
    alone, together = RunFolder.create(tmp_path / "alone"), RunFolder.create(tmp_path / "together")
    good = ("a", 30, honest("a", 30, 1.0))
    run(tiny.federation(rounds=2), app_of([good]), LAYOUT, 1, alone)
    run(tiny.federation(rounds=2), app_of([good, ("bad", 10, broken(kind))]), LAYOUT, 2, together)
    np.testing.assert_array_equal(together.load_checkpoint(2, LAYOUT), alone.load_checkpoint(2, LAYOUT))
    site = together.read_rounds()[0]["sites"]["bad"]
    assert (site["status"], site["reason"]) == (status, reason)
    assert "Jane" not in "".join(path.read_text() for path in (tmp_path / "together").glob("*.jsonl"))


def test_a_round_below_the_minimum_leaves_the_model_and_three_end_the_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=9, strategy={"min_sites": 2})
    answers = [("a", 30, honest("a", 30, 1.0)), ("bad", 10, broken("nan"))]
    with pytest.raises(FederationError, match="3 rounds in a row"):
        run(config, app_of(answers), LAYOUT, 2, folder)
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), np.zeros(4))


@pytest.mark.parametrize("kind", ["nan", "short", "greedy", "replay", "huge"])
def test_refused_three_times_a_site_is_told_and_then_not_asked_until_released(tmp_path: Path, kind: str) -> None:
    folder = RunFolder.create(tmp_path / "run")
    tasks: list[tuple[str, Task]] = []
    observer = Silent()
    sites = [site("a", 30, 1.0), site("b", 20, 1.2), ("bad", 10, broken(kind))]
    run(tiny.federation(rounds=6), app_of(sites, tasks), LAYOUT, 3, folder, observer=observer)
    told = [task.refused_last for name, task in tasks if name == "bad"]
    assert told[0] is None
    assert len(told) == 3
    assert told[1] == told[2] == folder.read_rounds()[0]["sites"]["bad"]["reason"]
    assert all(task.refused_last is None for name, task in tasks if name != "bad")
    state = folder.load_state()
    assert state is not None
    assert set(state.quarantine) == {"bad"}
    assert any("bad" in text for text in observer.messages)
    assert [len(line["sites"]) for line in folder.read_rounds()] == [3, 3, 3, 2, 2, 2, 2]

    lines = (folder.path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (folder.path / "rounds.jsonl").write_bytes(b"".join(lines[:5]))
    state.finished, state.round, state.rounds_bytes, state.digests = False, 5, 0, {}
    state.counted = {}
    folder.save_checkpoint(5, folder.load_checkpoint(6, LAYOUT), LAYOUT)
    folder.commit(state)
    release(folder, "bad")
    healed = [*sites[:2], site("bad", 10, 1.0)]
    run(tiny.federation(rounds=6), app_of(healed), LAYOUT, 3, folder)
    assert folder.read_rounds()[5]["sites"]["bad"]["status"] == "ok"


def test_a_huge_update_is_refused_in_any_later_round_too(tmp_path: Path) -> None:
    """It behaves until round 3, and then sends twenty times what it sent."""
    folder = RunFolder.create(tmp_path / "run")
    good = honest("late", 10, 1.0)

    def turns(task: Task, weights: np.ndarray) -> tuple[object, np.ndarray | None]:
        result, update = good(task, weights)
        return result, update * 20 if update is not None and task.round >= 3 else update

    sites = [site("a", 30, 1.0), site("b", 20, 1.2), ("late", 10, turns)]
    run(tiny.federation(rounds=4), app_of(sites), LAYOUT, 3, folder)  # type: ignore[arg-type]
    reasons = [line["sites"]["late"]["reason"] for line in folder.read_rounds()]
    assert reasons == [None, None, "norm-outlier", "norm-outlier", None]
    honest_mean, mean = (30 * 1.0 + 20 * 1.2) / 50, (30 * 1.0 + 20 * 1.2 + 10) / 60
    np.testing.assert_allclose(folder.load_checkpoint(4, LAYOUT), np.full(4, 2 * mean + 2 * honest_mean), rtol=1e-6)


def test_an_outlier_does_not_fill_the_quorum(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=9, strategy={"min_fraction": 0.9})
    sites = [site("a", 30, 1.0), site("b", 20, 1.2), ("bad", 10, broken("huge"))]
    with pytest.raises(FederationError, match="3 rounds in a row"):
        run(config, app_of(sites), LAYOUT, 3, folder)
    np.testing.assert_array_equal(folder.load_checkpoint(3, LAYOUT), np.zeros(4))


def test_scores_of_a_refused_site_are_not_counted(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    boaster = honest("bad", 10, 1e6, lambda weights: 1.0)
    sites = [site("a", 30, 1.0), site("b", 20, 1.2), ("bad", 10, boaster)]
    run(tiny.federation(rounds=2), app_of(sites), LAYOUT, 3, folder)
    assert [line["mean_dice"] for line in folder.read_rounds()[:2]] == [0.5, 0.5]


def test_scores_below_the_quorum_choose_no_model(tmp_path: Path) -> None:
    """Only one site answers the last message, and loves what it sees; the best model is the one that two scored."""
    folder = RunFolder.create(tmp_path / "run")

    def shy(task: Task, weights: np.ndarray) -> tuple[object, np.ndarray | None]:
        if not task.train:
            raise ArithmeticError
        return honest("b", 20, 1.2, lambda _: 0.4)(task, weights)

    fond = honest("a", 30, 1.0, lambda weights: min(1.0, 0.4 + float(weights[0]) / 10))
    config = tiny.federation(rounds=2, strategy={"min_sites": 2})
    run(config, app_of([("a", 30, fond), ("b", 20, shy)]), LAYOUT, 2, folder)  # type: ignore[list-item]
    state = folder.load_state()
    assert state is not None
    assert state.best_round == 1
    assert state.final_mean_dice > state.best_mean_dice  # type: ignore[operator]


def test_a_run_in_which_no_round_had_its_quorum_releases_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    config = tiny.federation(rounds=2, strategy={"min_sites": 2})
    with pytest.raises(FederationError, match=r"there is no model: \S+ at 1 of 2 sites, round 2"):
        run(config, app_of([site("a", 30, 1.0), ("bad", 10, broken("nan"))]), LAYOUT, 2, folder)
    state = folder.load_state()
    assert state is not None
    assert not state.finished


@pytest.mark.parametrize(("upload", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.27)])
def test_a_federation_learns_through_any_transport(tmp_path: Path, upload: str, share: float) -> None:
    whole, lossy = RunFolder.create(tmp_path / "whole"), RunFolder.create(tmp_path / "lossy")
    download = "float32" if upload == "float32" else "bfloat16"
    bytes_up = []
    for folder, transport in ((whole, {}), (lossy, {"upload": upload, "download": download})):
        config = tiny.federation(rounds=3, transport=transport)
        opened = [tiny.site(name, seed, config.digest()) for seed, name in enumerate("ab")]
        run(config, real_app(dict(enumerate(opened))), opened[0].trainer.layout, 2, folder)
        bytes_up.append(folder.read_rounds()[0]["bytes_up"])
    layout = opened[0].trainer.layout
    assert 8 * layout.size < PIECE_BYTES, "one piece each"
    assert bytes_up[1] <= share * bytes_up[0]
    scores = [[line["mean_dice"] for line in folder.read_rounds()] for folder in (whole, lossy)]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.03)
    ends = [folder.load_checkpoint(3, layout) for folder in (whole, lossy)]
    assert np.linalg.norm(ends[1] - ends[0]) <= 0.05 * np.linalg.norm(ends[0])


def test_two_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    answers = [("a", 3, honest("a", 3, 1.0))] * 2
    with pytest.raises(FederationError, match="same name"):
        run(tiny.federation(), app_of(answers), LAYOUT, 2, RunFolder.create(tmp_path / "run"))


def site_of(opened: Mapping[int, Site], context: Context) -> Site:
    return opened[int(context.node_config["partition-id"])]


def real_app(opened: Mapping[int, Site]) -> SharedApp:
    return SharedApp(lambda weights: make_client_app(lambda context: site_of(opened, context), weights))


class Stop(BaseException):
    """Stands for kill -9: nothing handles it."""


@pytest.mark.parametrize("dies_at", [1, 2, 3, 4])
def test_a_killed_run_goes_on_to_the_same_model(tmp_path: Path, dies_at: int) -> None:
    config = tiny.federation(rounds=3)

    def sites(digest: str) -> dict[int, Site]:
        return {0: tiny.site("a", 1, digest), 1: tiny.site("b", 2, digest)}

    def app(kill: bool) -> SharedApp:
        class Mortal(SharedApp):
            def __call__(self, message: Message, context: Context) -> Message:
                if kill and message.metadata.group_id == str(dies_at) and context.node_config["partition-id"] == 1:
                    raise Stop
                return super().__call__(message, context)

        opened = sites(config.digest())
        return Mortal(lambda weights: make_client_app(lambda context: site_of(opened, context), weights))

    layout = tiny.trainer().layout
    whole, cut = RunFolder.create(tmp_path / "whole"), RunFolder.create(tmp_path / "cut")
    run(config, app(kill=False), layout, 2, whole)
    with pytest.raises(Stop):
        run(config, app(kill=True), layout, 2, cut)
    state = cut.load_state()
    assert state is not None
    assert state.round == dies_at - 1
    cut.rewind(state)
    run(config, app(kill=False), layout, 2, cut)
    np.testing.assert_array_equal(cut.load_checkpoint(3, layout), whole.load_checkpoint(3, layout))
    scores = [[line["mean_dice"] for line in folder.read_rounds()] for folder in (whole, cut)]
    assert scores[0] == scores[1]


def test_a_site_that_agreed_to_another_federation_refuses(tmp_path: Path) -> None:
    site = tiny.site("a", 1, "digest of another file")
    with pytest.raises(FederationError, match="wrong-federation"):
        run(tiny.federation(), real_app({0: site}), site.trainer.layout, 1, RunFolder.create(tmp_path / "r"))


def test_a_failure_at_a_site_leaves_only_a_code_and_a_class_name() -> None:
    def open_site(context: Context) -> Site:
        raise FileNotFoundError("/data/jane_doe/scan.nii.gz")

    store = MemoryStore()
    grid = InlineGrid(make_client_app(open_site, SiteWeights(store, store)), {1: {}})
    [reply] = grid.send_and_receive([grid.message(to_record(pack(Hello("r", "d"))), 1, "query.hello")])
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (1000, "FileNotFoundError")


def test_an_interruption_that_a_library_hides_is_no_failure_of_a_site() -> None:
    def open_site(context: Context) -> Site:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("cannot go on")

    store = MemoryStore()
    grid = InlineGrid(make_client_app(open_site, SiteWeights(store, store)), {1: {}})
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive([grid.message(to_record(pack(Hello("r", "d"))), 1, "query.hello")])


def test_a_run_whose_weights_are_not_finite_ends_before_the_round_is_committed(tmp_path: Path) -> None:
    """Each update is finite, and so is the model; their sum is not."""
    folder, config = RunFolder.create(tmp_path / "run"), tiny.federation(rounds=3)
    begin(config, LAYOUT, folder, 3e38)
    for _ in range(2):
        with pytest.raises(FederationError, match=r"weights after round 1 have NaN or infinite values.*rounds\.jsonl"):
            run(config, app_of([site(name, 10, 3e38) for name in "ab"]), LAYOUT, 2, folder)
        state = folder.load_state()
        assert state is not None
        assert (state.round, state.finished) == (0, False)
