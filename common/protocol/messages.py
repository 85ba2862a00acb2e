"""What a server and a site say to each other, as typed values; ``common.protocol.codec`` puts them on the wire."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from common.weights.encoding import Encoding


class ErrorCode(IntEnum):
    """Why a site sent no update; numbers lie beyond Flower's own."""

    INTERNAL = 1000
    BAD_TASK = 1001
    WRONG_FEDERATION = 1002
    NO_DATA = 1003
    NON_FINITE_LOSS = 1004
    OUT_OF_MEMORY = 1005
    TASK_LOST = 1006
    NOT_APPROVED = 1010
    PAUSED = 1011
    WITHDRAWN = 1012
    OUTSIDE_LIMITS = 1013
    REFUSED_BY_SITE = 1014
    PRIVACY_BUDGET = 1015
    PRIVACY_REQUIRED = 1016
    LEDGER = 1017


class Refusal(StrEnum):
    """Why the server did not count a reply; the site is told with its next task."""

    PROTOCOL = "protocol"
    WRONG_SITE = "wrong-site"
    WRONG_RUN = "wrong-run"
    WRONG_ROUND = "wrong-round"
    WRONG_LABELS = "wrong-labels"
    EXAMPLES_DIFFER = "examples-differ"
    NUMBER_OUT_OF_RANGE = "number-out-of-range"
    MISSING_UPDATE = "missing-update"
    UNEXPECTED_UPDATE = "unexpected-update"
    NOT_FINITE = "not-finite"
    NORM_OUTLIER = "norm-outlier"
    NORM_DISPUTED = "norm-disputed"


@dataclass(frozen=True)
class Hello:
    """Asks a site who it is.

    Attributes
    ----------
    run
        random identity of the run.
    digest
        of the federation's configuration.
    """

    run: str
    digest: str


@dataclass(frozen=True)
class Task:
    """What the server asks of a site in one message; the weights travel beside it, as a file.

    Attributes
    ----------
    round
        1 to ``rounds`` with training, ``rounds`` + 1 for the last, evaluate-only message.
    digest
        of the federation's configuration; a site that agreed to another one refuses.
    run
        random identity of the run, so that a reply to another run is never counted.
    model
        SHA-256 of the file that holds the global weights.
    download
        the form of its values.
    upload
        the form that the update is to have.
    refused_last
        why this site's last reply was not counted, a ``Refusal``; None if it was.
    """

    run: str
    digest: str
    round: int
    rounds: int
    train: bool
    model: str
    download: Encoding = "float32"
    upload: Encoding = "float32"
    refused_last: Refusal | None = None

    @property
    def name(self) -> str:
        """The same for every message that asks for the same work: a function of run, round and model."""
        return task_name(self.run, self.round, self.model)


def task_name(run: str, round_number: int, model: str) -> str:
    """32 hexadecimal digits that name the work of one round on one model."""
    return hashlib.sha256(f"{run}\0{round_number}\0{model}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life from a site, sent every few seconds.

    Attributes
    ----------
    tasks
        names of the tasks that it has received and not answered yet.
    task
        name of the one that is being worked on; empty if none is.
    step
        training steps done of it, of ``steps``.
    """

    tasks: tuple[str, ...] = ()
    task: str = ""
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Failure:
    """What a site answers instead of a result: a code, and the name of an exception class."""

    code: ErrorCode
    reason: str


@dataclass(frozen=True)
class SiteInfo:
    """What a site declares once, before the first round."""

    site: str
    train_examples: int
    validation_examples: int
    fedvox: str
    flwr: str
    torch: str
    python: str
    device: str
    precision: str


@dataclass(frozen=True)
class Result:
    """The numbers that a site sends back; after training the update goes beside them, as a file.

    Attributes
    ----------
    update
        SHA-256 of the update's file; None without training.
    examples
        training patients.
    validation_examples
        validation patients.
    train_loss
        mean over the round's steps (NaN without training).
    validation_loss
        mean over patients.
    dice
        label -> mean Dice over the validation patients in whom the label or its prediction exists; NaN if none.
    seconds
        wall-clock of the whole task, and its shares: waiting for data, computing, evaluating.
    epsilon
        differential privacy spent so far; NaN without it.
    """

    site: str
    run: str
    round: int
    examples: int
    validation_examples: int
    steps: int
    train_loss: float
    validation_loss: float
    dice: dict[int, float]
    seconds: float
    seconds_data: float
    seconds_compute: float
    seconds_evaluate: float
    epsilon: float = math.nan
    update: str | None = None

    @property
    def mean_dice(self) -> float:
        """Mean over labels that have a Dice; NaN if none has."""
        known = [value for value in self.dice.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan
