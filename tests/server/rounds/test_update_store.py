"""Accepted updates: the mean is that of all at once, and only whole updates are found again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import OutputError, ProtocolError
from common.protocol.codec import Result
from common.weights.encoding import VALUES_PER_PIECE, WINDOW, Encoding, encode_vector, vector_bytes, vector_of
from common.weights.store import FileStore, MissingWeightsError
from server.rounds.admission import AcceptedUpdate, RefusedError, UpdateReader
from server.rounds.strategies.strategy import Next, Window
from server.rounds.strategies.weighted_mean import WeightedMean
from server.rounds.update_store import UpdateStore
from server.rounds.weight_transfer import GatewayTransfer, StoreTransfer, WeightTransfer
from server.run_store.gateway_folder import GatewayFolder
from tests.server.rounds.test_admission import GOOD, content_of

ENCODINGS: list[Encoding] = ["float32", "bfloat16", "int8"]
LARGE = 2**20 + 77


class Intake(UpdateStore):
    """With the reader that stands before it in a round."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        *_, size, encoding, transfer = arguments
        self.reader = UpdateReader(transfer, size, encoding)

    def take(self, result: Result, sha256: str = "") -> AcceptedUpdate:
        update = self.reader.read(result, sha256)
        self.add(update)
        return update


def mean(store: UpdateStore, weights: dict[str, float]) -> Iterator[np.ndarray]:
    """As a strategy reads updates."""

    def of_window(window: Window) -> Next:
        found = WeightedMean(window.size)
        for site, (update,) in window.updates():
            found.add(update, weights[site])
        return Next(found.mean())

    return (part.weights for part in store.accepted(list(weights), "uniform").map(of_window))


class Updates:
    """The updates of a run, as the gateway or a simulation brings them; both outlive the server app."""

    def __init__(self, root: Path, kind: str = "gateway") -> None:
        self.notes = root / "updates"
        self._gateway = GatewayFolder(root)
        self._shared = FileStore(root / "shared")
        self._kind = kind

    @property
    def transfer(self) -> WeightTransfer:
        if self._kind == "gateway":
            return GatewayTransfer(self._gateway, "float32")
        return StoreTransfer(self._shared, "float32")

    def folder(self, site: str) -> Path:
        return self._gateway.updates(site) if self._kind == "gateway" else self._shared.folder

    def opened(self, round_number: int = 2, size: int = 3, encoding: Encoding = "float32", run: str = "r1") -> Intake:
        store = Intake(self.notes, run, round_number, size, encoding, self.transfer)
        store.open(store.reader.read_again)
        return store

    def sent(self, vector: np.ndarray, encoding: Encoding = "float32", **values: object) -> Result:
        """A reply whose update has come."""
        result = replace(GOOD, **values)  # type: ignore[arg-type]
        pieces = encode_vector(vector.astype(np.float32), encoding)
        return replace(result, update=FileStore(self.folder(result.site)).put(data for _, data in pieces))

    def files(self) -> list[str]:
        """Names of whole updates."""
        return sorted(path.name for path in self.notes.parent.rglob("*") if len(path.name) == 64)


@pytest.fixture(params=["gateway", "simulation"])
def updates(request: pytest.FixtureRequest, tmp_path: Path) -> Updates:
    return Updates(tmp_path, request.param)


def mean_of(store: UpdateStore, weights: dict[str, float], size: int = 3) -> np.ndarray:
    whole = np.concatenate(list(mean(store, weights)))
    assert whole.size == size
    return whole


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pieces", [0, 1])
def test_the_mean_is_that_of_whole_vectors_to_the_last_bit(tmp_path: Path, encoding: Encoding, pieces: int) -> None:
    """Of an update of one piece, and of one of two whose last ends within a block and a window."""
    updates, size = Updates(tmp_path), pieces * VALUES_PER_PIECE[encoding] + WINDOW + 77
    store, expected = updates.opened(size=size, encoding=encoding), WeightedMean(size)
    for index, site in enumerate("abc"):
        vector = np.random.default_rng(index).standard_normal(size, np.float32)
        store.take(updates.sent(vector, encoding, site=site))
        expected.add(vector_of(content_of(vector, encoding), size, encoding), index + 1)
    found = mean_of(store, {site: index + 1 for index, site in enumerate("abc")}, size)
    np.testing.assert_array_equal(found.view(np.uint32), expected.mean().view(np.uint32))


def test_only_named_sites_are_in_the_mean(updates: Updates) -> None:
    store = updates.opened()
    for index, site in enumerate("abc"):
        store.take(updates.sent(np.full(3, index + 1.0), site=site))
    np.testing.assert_array_equal(mean_of(store, {"a": 1, "c": 1}), np.full(3, 2.0))
    with pytest.raises(KeyError):
        mean_of(store, {"d": 1})


def test_what_is_remembered_of_an_update(updates: Updates) -> None:
    accepted = updates.opened().take(updates.sent(np.array([3.0, 0.0, 4.0])), "ab" * 32)
    assert (accepted.norm, accepted.size, accepted.sha256) == (5.0, 12, "ab" * 32)


def test_a_mean_that_nobody_reads_to_its_end_holds_nobody_up(updates: Updates) -> None:
    store = updates.opened(size=LARGE, encoding="int8")
    store.take(updates.sent(np.ones(LARGE), "int8"))
    for _ in mean(store, {"a": 1}):
        break


@given(st.sets(st.sampled_from(["a", "b", "../../etc", "x" * 200, "ä/ö"]), min_size=1))
def test_any_name_is_found_again(tmp_path_factory: pytest.TempPathFactory, sites: set[str]) -> None:
    """In a simulation a site is called as its table has it."""
    updates = Updates(tmp_path_factory.mktemp("updates"), "simulation")
    before = updates.opened()
    for site in sites:
        before.take(updates.sent(np.full(3, len(site)), site=site))
    after = updates.opened()
    assert set(after.updates) == sites
    assert repr(dict(sorted(after.updates.items()))) == repr(dict(sorted(before.updates.items())))
    assert not [path for path in updates.notes.parent.rglob("*") if "etc" in path.name]
    for site in sites:
        np.testing.assert_array_equal(mean_of(after, {site: 1}), np.full(3, len(site)))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size - 1),
    "longer": lambda file: os.truncate(file, file.stat().st_size + 1),
    "a bit": flip,
    "gone": Path.unlink,
    "empty": lambda file: os.truncate(file, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_after_a_crash_a_damaged_update_is_not_found_and_the_others_are(
    updates: Updates, damage: Callable[[Path], object]
) -> None:
    store = updates.opened()
    bad = updates.sent(np.ones(3))
    store.take(bad)
    store.take(updates.sent(np.full(3, 5.0), site="b"))
    damage(updates.folder("a") / str(bad.update))
    after = updates.opened()
    assert set(after.updates) == {"b"}
    assert bad.update not in updates.files()
    np.testing.assert_array_equal(mean_of(after, {"b": 3}), np.full(3, 5.0))
    assert set(updates.opened().updates) == {"b"}


NOTES: dict[str, Callable[[Path], object]] = {
    **{name: DAMAGES[name] for name in ("cut", "a bit", "gone", "empty")},
    "no object": lambda file: file.write_text("[]"),
    "no result": lambda file: file.write_text("{}"),
    "another size": lambda file: _change(file, "norm", 99.0),
    "a field more": lambda file: _change(file, "surprise", 1),
    "another site": lambda file: _change_result(file, "site", "c"),
    "a site that is none": lambda file: _change_result(file, "site", 5),
    "no update": lambda file: _change_result(file, "update", None),
    "a path": lambda file: _change_result(file, "update", "../../state.json"),
    "no Dice": lambda file: _change_result(file, "dice", {"1": None}),
}


def _change(file: Path, key: str, value: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


def _change_result(file: Path, key: str, value: object) -> None:
    _change(file, "result", json.loads(file.read_text())["result"] | {key: value})


@pytest.mark.parametrize("damage", NOTES.values(), ids=NOTES)
def test_after_a_crash_a_damaged_note_is_as_good_as_none(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    updates = Updates(tmp_path)
    store = updates.opened()
    bad = updates.sent(np.ones(3))
    store.take(bad)
    [note] = updates.notes.glob("*.json")
    store.take(updates.sent(np.full(3, 5.0), site="b"))
    damage(note)
    after = updates.opened()
    assert set(after.updates) == {"b"}
    assert len(list(updates.notes.glob("*.json"))) == 1
    assert bad.update not in updates.files()


@pytest.mark.parametrize("other", [{"round_number": 3}, {"run": "r2"}, {"encoding": "int8"}, {"size": 4}])
def test_updates_of_another_round_run_or_form_are_not_found(updates: Updates, other: dict[str, object]) -> None:
    updates.opened().take(updates.sent(np.ones(3)))
    assert updates.opened(**other).updates == {}  # type: ignore[arg-type]
    assert updates.opened().updates == {}, "and they are gone, not waiting to come back"
    assert updates.files() == []


def test_an_update_that_was_never_accepted_is_asked_for_again(updates: Updates) -> None:
    """It came whole, and the server app was killed before it looked at it."""
    updates.sent(np.ones(3))
    (updates.folder("a") / f".{'ab' * 32}.part").write_bytes(b"half")
    assert updates.opened().updates == {}
    assert updates.files() == []
    assert [path.name for path in updates.folder("a").iterdir()] == [".spare"]


BAD: dict[str, np.ndarray] = {"nan": np.array([0, math.nan, 0]), "infinite": np.array([0, 0, math.inf])}


@pytest.mark.parametrize("vector", BAD.values(), ids=BAD)
def test_an_update_that_is_not_finite_leaves_nothing(updates: Updates, vector: np.ndarray) -> None:
    store = updates.opened()
    with pytest.raises(RefusedError, match="not-finite"):
        store.take(updates.sent(vector))
    assert store.updates == {}
    assert updates.files() == []
    assert list(updates.notes.iterdir()) == []


@pytest.mark.parametrize("size", [2, 4])
def test_an_update_of_another_size_leaves_nothing(updates: Updates, size: int) -> None:
    store = updates.opened()
    with pytest.raises(ProtocolError, match="bytes"):
        store.take(updates.sent(np.ones(size)))
    assert updates.files() == []


def test_a_negative_scale_leaves_nothing(updates: Updates) -> None:
    store = updates.opened(encoding="int8")
    content = np.float32(-1).tobytes() + bytes(3)
    digest = FileStore(updates.folder("a")).put([content])
    with pytest.raises(ProtocolError, match="scale"):
        store.take(replace(GOOD, update=digest))
    assert updates.files() == []


def test_an_update_that_was_changed_since_it_came_leaves_nothing(updates: Updates) -> None:
    store = updates.opened()
    result = updates.sent(np.ones(3))
    flip(updates.folder("a") / str(result.update))
    with pytest.raises(ProtocolError, match="changed or damaged"):
        store.take(result)
    assert store.updates == {}
    assert updates.files() == []


@pytest.mark.parametrize("digest", ["f" * 64, None, "", "../../state.json"])
def test_an_update_that_has_not_come_is_missing(updates: Updates, digest: str | None) -> None:
    store = updates.opened()
    with pytest.raises(MissingWeightsError):
        store.take(replace(GOOD, update=digest))
    assert store.updates == {}


def test_the_update_of_another_site_is_missing(tmp_path: Path) -> None:
    """Who names it has seen its digest somewhere; every site has a folder of its own."""
    updates = Updates(tmp_path)
    store = updates.opened()
    others = updates.sent(np.ones(3), site="b")
    with pytest.raises(MissingWeightsError):
        store.take(replace(GOOD, update=others.update))
    store.take(others)
    np.testing.assert_array_equal(mean_of(store, {"b": 1}), np.ones(3))


def test_equal_updates_of_two_sites_are_two(updates: Updates) -> None:
    store = updates.opened()
    for site in "ab":
        store.take(updates.sent(np.ones(3), site=site))
    store.drop("a")
    np.testing.assert_array_equal(mean_of(store, {"b": 1}), np.ones(3))
    assert set(updates.opened().updates) == {"b"}
    store.drop("b")
    assert updates.files() == []


def test_dropped_is_gone_also_after_a_crash(updates: Updates) -> None:
    store = updates.opened()
    store.take(updates.sent(np.ones(3)))
    store.drop("a")
    assert updates.opened().updates == {}
    assert updates.files() == []


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "updates").write_text("")
    with pytest.raises(OutputError, match="updates"):
        Updates(tmp_path).opened()


def test_a_note_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = Updates(tmp_path)
    store, result = updates.opened(), updates.sent(np.ones(3))
    updates.notes.rmdir()
    with pytest.raises(OutputError, match=r"updates.*free space"):
        store.take(result)


def test_after_the_end_of_a_round_nothing_is_found(updates: Updates) -> None:
    store = updates.opened(size=LARGE)
    store.take(updates.sent(np.ones(LARGE)))
    store.close()
    assert updates.files() == []
    assert updates.opened(size=LARGE).updates == {}
    after = updates.opened(3, size=100, encoding="int8")
    accepted = after.take(updates.sent(np.full(100, 5.0), "int8", round=3))
    assert accepted.size == vector_bytes(100, "int8")
    again = updates.opened(3, size=100, encoding="int8")
    np.testing.assert_array_equal(mean_of(again, {"a": 1}, 100), np.full(100, 5.0))


def test_the_end_of_a_run_leaves_no_update(updates: Updates) -> None:
    store = updates.opened()
    store.take(updates.sent(np.ones(3)))
    store.remove()
    assert not updates.notes.exists()
    assert updates.files() == []


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_memory_does_not_grow_with_the_model_or_the_sites(tmp_path: Path, encoding: Encoding) -> None:
    """Eight updates of 100 MB as float32: only pieces of their mean are held at a time, less than even one update."""
    updates, size = Updates(tmp_path), 25 * 2**20
    store = updates.opened(size=size, encoding=encoding)
    sent = updates.sent(np.random.default_rng(0).standard_normal(size, np.float32), encoding)
    for site in "bcdefgh":
        updates.folder(site).mkdir(parents=True)
        (updates.folder(site) / str(sent.update)).hardlink_to(updates.folder("a") / str(sent.update))
    before, most = _anonymous_bytes(), 0
    for site in "abcdefgh":
        store.take(replace(sent, site=site))
    for values in mean(store, dict.fromkeys("abcdefgh", 1)):
        assert values.size <= VALUES_PER_PIECE[encoding]
        most = max(most, _anonymous_bytes())
    assert most - before < 4 * size
