"""What a site remembers of its own gradient from round to round, in SCAFFOLD and FedDyn.

Both add a constant vector to every gradient of a round, and know afterwards more of the site's own gradient. With the
vector k that the site kept, and the server's vector c that came behind the model (SCAFFOLD's control variate; 0 in
FedDyn), the constant is c - k. After the round k becomes k - c - factor * update, where the factor is 1 / length of the
round's steps in SCAFFOLD and alpha in FedDyn (``server.rounds.strategies``).

The server computes the mean of all k from the updates that counted. So a site continues from the last round that
counted, which the task names, and remembers the update as it was sent, with what a lossy encoding changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.site_vectors import RESTORE, SiteVectors
from common.config.federation import FederationConfig
from common.config.schedule import round_length
from common.errors import DamagedFileError, ProtocolError
from common.protocol.codec import Task, Vector
from common.system.state_file import MISSING

MEMORY = "gradients"
"""Name of the folder that holds it."""
NAME = "gradient"


class GradientMemory:
    """The memory of one site.

    Parameters
    ----------
    config
        The federation; its algorithm is one of ``KEEP_VECTORS``.
    vectors
        Where the site keeps the vector.

    Attributes
    ----------
    received
        Number of vectors that come behind every model.
    """

    def __init__(self, config: FederationConfig, vectors: SiteVectors) -> None:
        self._config = config
        self._vectors = vectors
        self.received = len(config.strategy.sent_vectors)

    def correction(self, task: Task, size: int, received: Sequence[Vector]) -> Vector:
        """Return what to add to every gradient of a task.

        Parameters
        ----------
        task
            The task.
        size
            Number of values in the model.
        received
            The vectors that came behind the model.

        Raises
        ------
        DamagedFileError
            What the site kept in the last round that counted is missing or damaged.
        ProtocolError
            A received vector is not finite.
        """
        kept = self._vectors.read(task.run, task.counted_last + 1)
        if kept.round != task.counted_last:
            raise DamagedFileError(self._vectors.path(task.run, task.counted_last), MISSING, RESTORE)
        correction = np.zeros(size, np.float32)
        for vector in received:
            correction += vector
        if kept.vectors:
            correction -= kept.vectors[NAME]
        if not np.isfinite(correction).all():
            raise ProtocolError("the vectors behind the model are not all finite")
        return correction

    def remember(self, task: Task, steps: int, correction: Vector, update: Vector) -> None:
        """Keep what a task has taught, before its reply leaves.

        Parameters
        ----------
        task
            The task.
        steps
            Steps that were made.
        correction
            From ``correction``.
        update
            The update as the server will decode it.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        alpha = self._config.strategy.feddyn_alpha
        factor = np.float32(1 / round_length(self._config, task.round, steps) if alpha is None else alpha)
        self._vectors.write(task.run, task.round, {NAME: -correction - factor * update}, task.counted_last)


def memory_of(config: FederationConfig, folder: Path | None, site: str) -> GradientMemory | None:
    """Return a site's memory, None if its algorithm has none.

    Parameters
    ----------
    config
        The federation.
    folder
        Where the site keeps vectors.
    site
        Name of the site.

    Raises
    ------
    ValueError
        The algorithm needs a folder.
    """
    if not config.strategy.keeps_vectors:
        return None
    if folder is None:
        raise ValueError(f"{config.strategy.name} needs a folder for what sites keep")
    return GradientMemory(config, SiteVectors(folder, site))
