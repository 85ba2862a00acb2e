"""How models get to sites and updates from them: what may be fetched and sent, and for how long."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import ProtocolError
from common.protocol.codec import Task
from common.protocol.messages import Heartbeat
from common.weights.encoding import Encoding, encode, pieces_of, vector_bytes, vector_of, vectors_of
from common.weights.store import FileStore, MemoryStore, MissingWeightsError, map_file
from server.rounds.weight_transfer import GatewaySignals, GatewayTransfer, Published, StoreTransfer
from server.run_store.folder import RunFolder
from server.run_store.gateway_folder import GatewayFolder, OpenTask
from server.run_store.locks import NODES_FILE
from tests.server.fake_sites import LAYOUT

WEIGHTS = np.array([3.0, 0.0, -4.0, 0.0], np.float32)
UPDATE_BYTES = 16


def task_for(published: Published, round_number: int = 1) -> Task:
    return Task("r1", "d", round_number, 5, True, published.model, published.encoding)


def parts_of(weights: np.ndarray) -> Iterator[np.ndarray]:
    yield weights[:3]
    yield weights[3:]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def gateway(folder: RunFolder) -> GatewayFolder:
    made = GatewayFolder(folder.path)
    made.make()
    return made


def published(transfer: GatewayTransfer | StoreTransfer, folder: RunFolder, number: int = 0) -> Published:
    """Publishes a checkpoint while it is written, as the round loop does it."""
    parts = folder.write_checkpoint(number, parts_of(WEIGHTS + number), LAYOUT)
    return transfer.publish(parts, *folder.checkpoint_values(number, LAYOUT))


def served(gateway: GatewayFolder, task: OpenTask) -> bytes:
    return map_file(gateway.run / task.file, task.offset)[: task.size].tobytes()


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_what_is_published_is_served_to_whom_it_is_for(
    folder: RunFolder, gateway: GatewayFolder, encoding: Encoding
) -> None:
    transfer = GatewayTransfer(gateway, encoding)
    model = published(transfer, folder)
    assert model == Published(model.model, encoding, vector_bytes(4, encoding), 5.0)
    task = task_for(model)
    transfer.open_tasks({"a": task}, UPDATE_BYTES)
    assert gateway.open_tasks("b") == []
    [opened] = gateway.open_tasks("a")
    assert (opened.name, opened.model, opened.update_bytes) == (task.name, model.model, UPDATE_BYTES)
    content = served(gateway, opened)
    assert hashlib.sha256(content).hexdigest() == model.model
    np.testing.assert_array_equal(vector_of(np.frombuffer(content, np.uint8), 4, encoding), WEIGHTS)
    assert not Path(opened.file).is_absolute()
    assert ".." not in Path(opened.file).parts


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
@pytest.mark.parametrize("is_network", [False, True])
def test_vectors_are_served_behind_the_model(
    folder: RunFolder, gateway: GatewayFolder, encoding: Encoding, is_network: bool
) -> None:
    """They are written while the model is consumed, and the model's norm is its own."""
    store, written = MemoryStore(), list[np.ndarray]()

    def parts() -> Iterator[np.ndarray]:
        yield from parts_of(WEIGHTS)
        written.append(10 * WEIGHTS)

    transfer = GatewayTransfer(gateway, encoding) if is_network else StoreTransfer(store, encoding)
    checkpoint = folder.write_checkpoint(0, parts(), LAYOUT)
    model = transfer.publish(checkpoint, *folder.checkpoint_values(0, LAYOUT), lambda: parts_of(written[0]))
    assert model == Published(model.model, encoding, 2 * vector_bytes(4, encoding), 5.0)
    transfer.open_tasks({"a": task_for(model)}, UPDATE_BYTES)
    content = served(gateway, gateway.open_tasks("a")[0]) if is_network else store.get(model.model).tobytes()
    assert hashlib.sha256(content).hexdigest() == model.model
    found = vectors_of(np.frombuffer(content, np.uint8), 4, encoding, 2)
    np.testing.assert_array_equal(found, [WEIGHTS, 10 * WEIGHTS])
    with pytest.raises(ProtocolError, match="expected"):
        vectors_of(np.frombuffer(content, np.uint8), 4, encoding, 1)
    np.testing.assert_array_equal(folder.map_checkpoint(0, LAYOUT), WEIGHTS)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_a_large_model_is_hashed_piece_by_piece(tmp_path: Path, encoding: Encoding) -> None:
    """As whole it is what a site makes its digest of."""
    weights = np.random.default_rng(0).standard_normal(5_000_000, np.float32)
    parts = (weights[piece.start : piece.start + piece.count] for piece in pieces_of(weights.size, "float32"))
    gateway = GatewayFolder(tmp_path)
    model = GatewayTransfer(gateway, encoding).publish(parts, tmp_path / "checkpoint", 0)
    assert model.model == hashlib.sha256(encode(weights, encoding).data).hexdigest()
    assert model.norm == pytest.approx(float(np.linalg.norm(weights.astype(np.float64))), rel=1e-4)


def test_of_a_model_of_another_form_only_the_last_is_kept(folder: RunFolder, gateway: GatewayFolder) -> None:
    transfer = GatewayTransfer(gateway, "bfloat16")
    first = published(transfer, folder)
    second = published(transfer, folder, 1)
    models = FileStore(gateway.path / "models")
    models.verified(second.model)
    with pytest.raises(MissingWeightsError):
        models.get(first.model)


def test_a_new_task_ends_all_others(folder: RunFolder, gateway: GatewayFolder) -> None:
    transfer = GatewayTransfer(gateway, "float32")
    first = task_for(published(transfer, folder))
    transfer.open_tasks({"a": first, "b": replace(first, refused_last=None)}, UPDATE_BYTES)
    second = task_for(published(transfer, folder, 1), 2)
    transfer.open_tasks({"b": second}, 0)
    assert gateway.open_tasks("a") == []
    [opened] = gateway.open_tasks("b")
    assert (opened.name, opened.update_bytes) == (second.name, 0)
    transfer.close_round()
    assert gateway.open_tasks("b") == []


def test_the_same_task_again_after_a_crash_stays_open(folder: RunFolder, gateway: GatewayFolder) -> None:
    for _ in range(2):
        transfer = GatewayTransfer(gateway, "float32")
        task = task_for(published(transfer, folder))
        transfer.open_tasks({"a": task}, UPDATE_BYTES)
    assert [opened.name for opened in gateway.open_tasks("a")] == [task.name]


def test_without_a_model_there_is_no_task(gateway: GatewayFolder) -> None:
    transfer = GatewayTransfer(gateway, "float32")
    with pytest.raises(RuntimeError, match="no model"):
        transfer.open_tasks({"a": Task("r1", "d", 1, 5, True, "0" * 64)}, 0)


def test_each_site_has_updates_of_its_own(gateway: GatewayFolder) -> None:
    transfer = GatewayTransfer(gateway, "float32")
    mine = FileStore(gateway.updates("a")).put([b"mine"])
    assert transfer.update("a", mine).tobytes() == b"mine"
    with pytest.raises(MissingWeightsError):
        transfer.update("b", mine)
    transfer.drop_update("b", mine)
    assert transfer.update("a", mine).tobytes() == b"mine"
    transfer.drop_update("a", mine)
    with pytest.raises(MissingWeightsError):
        transfer.update("a", mine)


@pytest.mark.parametrize("site", ["", "..", "a/../b", "A B", "x" * 300])
def test_what_is_no_sites_name_has_no_update(gateway: GatewayFolder, site: str) -> None:
    FileStore(gateway.updates("b")).put([b"x"])
    with pytest.raises(MissingWeightsError):
        GatewayTransfer(gateway, "float32").update(site, hashlib.sha256(b"x").hexdigest())


def test_all_updates_but_some_are_removed(gateway: GatewayFolder) -> None:
    transfer = GatewayTransfer(gateway, "float32")
    kept = FileStore(gateway.updates("a")).put([b"kept"])
    others = {site: FileStore(gateway.updates(site)).put([b"other"]) for site in "abc"}
    half = gateway.updates("c") / f".{'ab' * 32}.part"
    half.write_bytes(b"half")
    transfer.keep_updates({"a": kept, "d": kept})
    assert transfer.update("a", kept).tobytes() == b"kept"
    for site, digest in others.items():
        with pytest.raises(MissingWeightsError):
            transfer.update(site, digest)
    assert not half.exists()


def test_in_a_simulation_the_last_model_alone_is_kept(folder: RunFolder) -> None:
    store = MemoryStore()
    transfer = StoreTransfer(store, "bfloat16")
    first = published(transfer, folder)
    update = store.put([b"update"])
    transfer.update("a", update)
    second = published(transfer, folder, 1)
    with pytest.raises(MissingWeightsError):
        store.get(first.model)
    np.testing.assert_array_equal(vector_of(store.get(second.model), 4, "bfloat16"), WEIGHTS + 1)
    transfer.keep_updates({"a": update})
    assert transfer.update("a", update).tobytes() == b"update"
    transfer.keep_updates({})
    store.get(second.model)
    with pytest.raises(MissingWeightsError):
        store.get(update)


def test_in_a_simulation_equal_content_is_dropped_when_nobody_has_it(folder: RunFolder) -> None:
    store = MemoryStore()
    transfer = StoreTransfer(store, "float32")
    model = published(transfer, folder)
    for site in "ab":
        transfer.update(site, model.model)
    transfer.drop_update("a", model.model)
    store.get(model.model)
    published(transfer, folder, 1)
    store.get(model.model)
    transfer.drop_update("b", model.model)
    with pytest.raises(MissingWeightsError):
        store.get(model.model)


def test_the_same_model_again_is_still_there(folder: RunFolder) -> None:
    """As after a round that failed."""
    store = MemoryStore()
    transfer = StoreTransfer(store, "float32")
    assert published(transfer, folder) == published(transfer, folder)
    store.get(published(transfer, folder).model)


MESSAGE = "12" * 32


def test_signals_are_the_gateways(folder: RunFolder, gateway: GatewayFolder) -> None:
    signals = GatewaySignals(gateway)
    assert not signals.has_reply(MESSAGE)
    gateway.note_handed_out(MESSAGE, 7)
    gateway.note_reply(MESSAGE)
    assert signals.has_reply(MESSAGE)
    signals.forget(MESSAGE)
    assert not signals.has_reply(MESSAGE)
    assert gateway.handed_out(MESSAGE) is None, "what the site still sends of it is refused"
    signals.forget(MESSAGE)
    assert not gateway.bell(7).exists()
    signals.ring(7)
    assert gateway.bell(7).exists()


def test_a_sign_of_life_is_that_of_the_site_that_registered_the_node(folder: RunFolder, gateway: GatewayFolder) -> None:
    signals, beat, before = GatewaySignals(gateway), Heartbeat(("ab" * 16,), "ab" * 16, 3, 40), time.time()
    assert signals.heartbeat(7) is None
    gateway.note_heartbeat("a", beat)
    assert signals.heartbeat(7) is None, "nobody has registered this node"
    folder.write_text(NODES_FILE, json.dumps({"7": "a", "8": "b"}))
    found = signals.heartbeat(7)
    assert found is not None
    assert before <= found[0] <= time.time()
    assert found[1] == beat
    assert signals.heartbeat(8) is None
