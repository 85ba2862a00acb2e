"""Transfers models to sites and updates to the server, outside Flower's messages.

Over a network the gateway serves files of the run folder and receives uploads (``GatewayTransfer``). In a simulation
both sides share a store (``StoreTransfer``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.protocol.codec import Vector
from common.protocol.messages import Heartbeat, Task
from common.weights.encoding import Encoding, encode, squared_norm, vector_bytes
from common.weights.store import Content, FileStore, MissingWeightsError, WeightStore, map_file
from server.run_store.gateway_folder import GatewayFolder, OpenTask
from server.run_store.locks import registered_names


@dataclass(frozen=True)
class Published:
    """A model that sites can fetch.

    Attributes
    ----------
    model
        SHA-256 of its bytes, encoded as ``encoding``, and of the vectors behind it.
    bytes
        Size of what is fetched.
    norm
        L2 norm of the weights.
    """

    model: str
    encoding: Encoding
    bytes: int
    norm: float


Behind = Callable[[], Iterable[Vector]]
"""Returns, in order, what is sent behind a model; called once the model's parts are consumed."""


class WeightTransfer(Protocol):
    """The server's end of the weight transfer."""

    def publish(
        self, parts: Iterable[Vector], checkpoint: Path, offset: int, behind: Behind | None = None
    ) -> Published:
        """Make a model available to sites in place of the previous one.

        Parameters
        ----------
        parts
            Its weights, in order. The iterable is consumed.
        checkpoint, offset
            The file and byte offset where the float32 weights are, once ``parts`` is consumed.
        behind
            Vectors of the model's size that sites receive in the same file; None for none.
        """

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Let each site fetch its task's model and, unless ``update_bytes`` is 0, upload one update of that size."""

    def update(self, site: str, digest: str) -> Content:
        """Return the bytes of an update.

        Raises
        ------
        MissingWeightsError
            The update has not arrived.
        """

    def drop_update(self, site: str, digest: str) -> None:
        """Remove an update."""

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Remove all updates except these: site -> digest."""

    def close_round(self) -> None:
        """Close all tasks; later uploads for them are refused."""


class StoreTransfer:
    """Weight transfer for simulations, through one store.

    The store keeps equal content once, so sites may share an update with each other or with the model.

    Parameters
    ----------
    store
        The store, shared with the sites.
    encoding
        Encoding of the models.
    """

    def __init__(self, store: WeightStore, encoding: Encoding) -> None:
        self._store = store
        self._encoding = encoding
        self._published: str | None = None
        self._updates: dict[str, str] = {}

    def publish(
        self, parts: Iterable[Vector], checkpoint: Path, offset: int, behind: Behind | None = None
    ) -> Published:
        """Put the model into the store."""
        del checkpoint, offset
        measured = _MeasuredParts(parts, behind)
        model = self._store.put(encode(part, self._encoding) for part in measured)
        previous, self._published = self._published, model
        self._drop(previous)
        return Published(model, self._encoding, measured.bytes(self._encoding), measured.norm)

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Do nothing: all sites can read the whole store."""

    def update(self, site: str, digest: str) -> Content:
        """Return the update from the store."""
        content = self._store.get(digest)
        self._updates[site] = digest
        return content

    def drop_update(self, site: str, digest: str) -> None:
        """Remove an update."""
        self._updates.pop(site, None)
        self._drop(digest)

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Remove everything else except the published model."""
        self._updates = dict(updates)
        self._store.keep({*updates.values(), *filter(None, [self._published])})

    def close_round(self) -> None:
        """Do nothing."""

    def _drop(self, digest: str | None) -> None:
        if digest is not None and digest not in (self._published, *self._updates.values()):
            self._store.drop(digest)


class GatewayTransfer:
    """Weight transfer over a network, through files that the gateway serves and receives.

    float32 models are served from the checkpoint; other encodings, and models with vectors behind them, are written to
    files of their own.

    Parameters
    ----------
    folder
        The gateway's folder.
    encoding
        Encoding of the models.
    """

    def __init__(self, folder: GatewayFolder, encoding: Encoding) -> None:
        self._folder = folder
        self._encoding = encoding
        self._models = FileStore(folder.path / "models")
        self._served: tuple[Path, int] | None = None
        self._bytes = 0

    def publish(
        self, parts: Iterable[Vector], checkpoint: Path, offset: int, behind: Behind | None = None
    ) -> Published:
        """Hash the model and write it, unless the checkpoint itself is served."""
        measured = _MeasuredParts(parts, behind)
        if self._encoding == "float32" and behind is None:
            total = hashlib.sha256()
            for part in measured:
                total.update(encode(part, "float32").data)
            model, self._served = total.hexdigest(), (checkpoint, offset)
        else:
            model = self._models.put(encode(part, self._encoding) for part in measured)
            self._models.keep({model})
            self._served = (self._models.path(model), 0)
        self._bytes = measured.bytes(self._encoding)
        return Published(model, self._encoding, self._bytes, measured.norm)

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Write each site's open task, and close all other tasks."""
        if self._served is None:
            raise RuntimeError("no model was published")
        file, offset = self._served
        path = str(file.relative_to(self._folder.run))
        for site, task in tasks.items():
            self._folder.open_task(site, OpenTask(task.name, task.model, path, offset, self._bytes, update_bytes))
        self._folder.close_tasks(keep=frozenset(task.name for task in tasks.values()))

    def update(self, site: str, digest: str) -> Content:
        """Return the memory-mapped file."""
        return map_file(self._store(site).path(digest))

    def drop_update(self, site: str, digest: str) -> None:
        """Remove an update."""
        self._store(site).drop(digest)

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Remove all other uploads, complete or partial."""
        for site in self._folder.sites():
            self._store(site).keep({updates[site]} if site in updates else set())

    def close_round(self) -> None:
        """Close all tasks."""
        self._folder.close_tasks()

    def _store(self, site: str) -> FileStore:
        try:
            return FileStore(self._folder.updates(site))
        except ValueError:
            raise MissingWeightsError("there is no such site") from None


class GatewaySignals:
    """Implements ``server.rounds.exchange.Signals`` with the gateway's files.

    Parameters
    ----------
    folder
        The gateway's folder.
    """

    def __init__(self, folder: GatewayFolder) -> None:
        self._folder = folder

    def ring(self, node: int) -> None:
        """Touch the node's bell."""
        self._folder.ring(node)

    def has_reply(self, message: str) -> bool:
        """Return whether the gateway has seen the whole reply."""
        return self._folder.has_reply(message)

    def forget(self, message: str) -> None:
        """Remove the gateway's records of a message."""
        self._folder.forget_message(message)

    def heartbeat(self, node: int) -> tuple[float, Heartbeat] | None:
        """Return the time and content of the site's last heartbeat."""
        site = registered_names(self._folder.run).get(node)
        last = None if site is None else self._folder.heartbeat(site)
        return None if last is None else (last.time, last.beat)


class _MeasuredParts:
    """Passes on the parts of a vector and measures its size and norm; then what is sent behind it."""

    def __init__(self, parts: Iterable[Vector], behind: Behind | None) -> None:
        self._parts = parts
        self._behind = behind
        self._squares = 0.0
        self._size = self._size_behind = 0

    def __iter__(self) -> Iterator[Vector]:
        for part in self._parts:
            self._size += part.size
            self._squares += squared_norm(part)
            yield part
        for part in self._behind() if self._behind is not None else ():
            self._size_behind += part.size
            yield part

    @property
    def norm(self) -> float:
        return math.sqrt(self._squares)

    def bytes(self, encoding: Encoding) -> int:
        """Return the size of everything that was passed on, as encoded."""
        return vector_bytes(self._size, encoding) + vector_bytes(self._size_behind, encoding)
