"""How models get to sites and updates from them, beside Flower's messages.

Over a network the gateway serves a file of the run folder and takes uploads (``GatewayTransfer``); in a simulation both
sides share a store (``StoreTransfer``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
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
        SHA-256 of its bytes, in the form ``encoding``.
    bytes
        How many they are.
    norm
        L2 norm of the weights.
    """

    model: str
    encoding: Encoding
    bytes: int
    norm: float


class WeightTransfer(Protocol):
    """The server's end of the way that weights take."""

    def publish(self, parts: Iterable[Vector], checkpoint: Path, offset: int) -> Published:
        """Make a model ready to be fetched; the ones before it are not any more.

        Parameters
        ----------
        parts
            Its weights, in order. They are read to the end.
        checkpoint, offset
            Where all of them lie, as float32, once they are read.
        """

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Let sites (by name) fetch what their tasks name and, if ``update_bytes`` is not 0, send an update of it."""

    def update(self, site: str, digest: str) -> Content:
        """Return the bytes of an update.

        Raises
        ------
        MissingWeightsError
            It has not come.
        """

    def drop_update(self, site: str, digest: str) -> None:
        """Forget an update."""

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Forget all updates but these: site -> digest."""

    def close_round(self) -> None:
        """End all open tasks: what sites still send for them is refused."""


class StoreTransfer:
    """For a simulation: everything goes through one store.

    Equal content is there once: an update of one site may be that of another one too, or the model itself.

    Parameters
    ----------
    store
        Which the sites use too.
    encoding
        The form in which models are sent.
    """

    def __init__(self, store: WeightStore, encoding: Encoding) -> None:
        self._store = store
        self._encoding = encoding
        self._published: str | None = None
        self._updates: dict[str, str] = {}

    def publish(self, parts: Iterable[Vector], checkpoint: Path, offset: int) -> Published:
        """Put the model into the store."""
        del checkpoint, offset
        measured = _Measured(parts)
        model = self._store.put(encode(part, self._encoding) for part in measured)
        former, self._published = self._published, model
        self._drop(former)
        return Published(model, self._encoding, vector_bytes(measured.size, self._encoding), measured.norm)

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Nothing to do: all sites see all of the store."""

    def update(self, site: str, digest: str) -> Content:
        """From the store."""
        content = self._store.get(digest)
        self._updates[site] = digest
        return content

    def drop_update(self, site: str, digest: str) -> None:
        """Forget an update."""
        self._updates.pop(site, None)
        self._drop(digest)

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Forget all else, but for the published model."""
        self._updates = dict(updates)
        self._store.keep({*updates.values(), *filter(None, [self._published])})

    def close_round(self) -> None:
        """Nothing to do."""

    def _drop(self, digest: str | None) -> None:
        if digest is not None and digest not in (self._published, *self._updates.values()):
            self._store.drop(digest)


class GatewayTransfer:
    """For a federation over a network: files, which the gateway serves and receives.

    float32 models are served out of the checkpoint; other forms are files of their own.

    Parameters
    ----------
    folder
        Of the gateway.
    encoding
        The form in which models are sent.
    """

    def __init__(self, folder: GatewayFolder, encoding: Encoding) -> None:
        self._folder = folder
        self._encoding = encoding
        self._models = FileStore(folder.path / "models")
        self._served: tuple[Path, int] | None = None
        self._bytes = 0

    def publish(self, parts: Iterable[Vector], checkpoint: Path, offset: int) -> Published:
        """Hash the model and, if it is not served out of the checkpoint, write it."""
        measured = _Measured(parts)
        if self._encoding == "float32":
            total = hashlib.sha256()
            for part in measured:
                total.update(encode(part, "float32").data)
            model, self._served = total.hexdigest(), (checkpoint, offset)
        else:
            model = self._models.put(encode(part, self._encoding) for part in measured)
            self._models.keep({model})
            self._served = (self._models.path(model), 0)
        self._bytes = vector_bytes(measured.size, self._encoding)
        return Published(model, self._encoding, self._bytes, measured.norm)

    def open_tasks(self, tasks: Mapping[str, Task], update_bytes: int) -> None:
        """Write down what each site may fetch and send, and end all other tasks."""
        if self._served is None:
            raise RuntimeError("no model was published")
        file, offset = self._served
        path = str(file.relative_to(self._folder.run))
        for site, task in tasks.items():
            self._folder.open_task(site, OpenTask(task.name, task.model, path, offset, self._bytes, update_bytes))
        self._folder.close_tasks(keep=frozenset(task.name for task in tasks.values()))

    def update(self, site: str, digest: str) -> Content:
        """Return the file, mapped."""
        return map_file(self._store(site).path(digest))

    def drop_update(self, site: str, digest: str) -> None:
        """Remove an update."""
        self._store(site).drop(digest)

    def keep_updates(self, updates: Mapping[str, str]) -> None:
        """Remove all other files that sites have sent, whole or not."""
        for site in self._folder.sites():
            self._store(site).keep({updates[site]} if site in updates else set())

    def close_round(self) -> None:
        """End all open tasks."""
        self._folder.close_tasks()

    def _store(self, site: str) -> FileStore:
        try:
            return FileStore(self._folder.updates(site))
        except ValueError:
            raise MissingWeightsError("there is no such site") from None


class GatewaySignals:
    """``server.rounds.exchange.Signals`` from the files of the gateway.

    Parameters
    ----------
    folder
        Of the gateway.
    """

    def __init__(self, folder: GatewayFolder) -> None:
        self._folder = folder

    def ring(self, node: int) -> None:
        """Touch the node's bell."""
        self._folder.ring(node)

    def has_reply(self, message: str) -> bool:
        """Whether the gateway has seen all of it."""
        return self._folder.has_reply(message)

    def forget(self, message: str) -> None:
        """Remove what the gateway noted of it."""
        self._folder.forget_message(message)

    def heartbeat(self, node: int) -> tuple[float, Heartbeat] | None:
        """Return what the node's site said last."""
        site = registered_names(self._folder.run).get(node)
        last = None if site is None else self._folder.heartbeat(site)
        return None if last is None else (last.time, last.beat)


class _Measured:
    """Hands on the parts of a vector, and knows afterwards how long and how large it was."""

    def __init__(self, parts: Iterable[Vector]) -> None:
        self._parts = parts
        self._squares = 0.0
        self.size = 0

    def __iter__(self) -> Iterator[Vector]:
        for part in self._parts:
            self.size += part.size
            self._squares += squared_norm(part)
            yield part

    @property
    def norm(self) -> float:
        return math.sqrt(self._squares)
