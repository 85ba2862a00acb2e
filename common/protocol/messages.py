"""Messages between server and sites as typed values; ``common.protocol.codec`` encodes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from common.weights.encoding import Encoding


class ErrorCode(IntEnum):
    """Why a site sent no update; the numbers do not overlap with Flower's codes."""

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
    APPROVAL_USED_UP = 1020
    ROLLED_BACK = 1021


class Refusal(StrEnum):
    """Why the server rejected a reply; the next task tells the site."""

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
    PATIENTS_CHANGED = "patients-changed"
    ZERO_UPDATE = "zero-update"
    REPEATED_UPDATE = "repeated-update"
    OPPOSED = "opposed"
    DIRECTION_DISPUTED = "direction-disputed"
    PERSONAL_WEIGHTS = "personal-weights"


@dataclass(frozen=True)
class Hello:
    """Asks a site to identify itself.

    Attributes
    ----------
    run
        Random ID of the run.
    digest
        Digest of the federation's configuration.
    epsilon_seen, ledger_seen, audit_seen
        ``epsilon``, ``ledger_head`` and ``audit_head`` as this site reported them last; NaN and None if it has not. A
        site whose ledger or audit log lacks them was set back (``client.ledger.rollback``).
    """

    run: str
    digest: str
    epsilon_seen: float = math.nan
    ledger_seen: str | None = None
    audit_seen: str | None = None


@dataclass(frozen=True)
class Task:
    """Work for a site in one round; the global weights are sent separately as a file.

    Attributes
    ----------
    round
        1 to ``rounds`` with training, ``rounds`` + 1 for the last, evaluate-only task.
    digest
        Digest of the federation's configuration; a site that approved another one refuses the task.
    run
        Random ID of the run, so that a reply to another run is never counted.
    model
        SHA-256 of the file that holds the global weights, and behind them the strategy's vectors for the sites, such as
        SCAFFOLD's control variate.
    download
        Encoding of the global weights and those vectors.
    upload
        Encoding that the update must have.
    refused_last
        Why this site's last reply was rejected; None if it was accepted.
    counted_last
        The last round in which this site's update became part of the model; 0 if none has. What the site keeps between
        rounds continues from there.
    epsilon_seen, ledger_seen, audit_seen
        As in ``Hello``.
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
    counted_last: int = 0
    epsilon_seen: float = math.nan
    ledger_seen: str | None = None
    audit_seen: str | None = None

    @property
    def name(self) -> str:
        """Task name; identical for all messages that request the same work (run, round and model)."""
        return task_name(self.run, self.round, self.model)


def task_name(run: str, round_number: int, model: str) -> str:
    """Return the name (32 hexadecimal digits) of the task of one round on one model."""
    return hashlib.sha256(f"{run}\0{round_number}\0{model}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life from a site, sent every few seconds.

    Attributes
    ----------
    tasks
        Names of the tasks that the site has received and not answered yet.
    task
        Name of the task in progress; empty if there is none.
    step
        Training steps of that task done so far, out of ``steps``.
    """

    tasks: tuple[str, ...] = ()
    task: str = ""
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Failure:
    """Sent by a site instead of a result: a code and the name of an exception class."""

    code: ErrorCode
    reason: str


@dataclass(frozen=True)
class SiteInfo:
    """What a site declares before the first round, and after it or the server restarts.

    Attributes
    ----------
    ledger_head, audit_head
        Hashes of the last entry that the site wrote to its privacy ledger, and of the last in its audit log; None
        without one, and in simulations.
    """

    site: str
    train_examples: int
    validation_examples: int
    fedvox: str
    flwr: str
    torch: str
    python: str
    device: str
    precision: str
    ledger_head: str | None = None
    audit_head: str | None = None


@dataclass(frozen=True)
class Result:
    """Result of a task at a site; after training the update is sent separately as a file.

    Attributes
    ----------
    update
        SHA-256 of the update's file; None without training.
    examples
        Number of training patients.
    validation_examples
        Number of validation patients.
    train_loss
        Mean over the round's steps; NaN without training.
    validation_loss
        Mean over patients.
    dice
        Label -> mean Dice over the validation patients in whom the label or its prediction exists; NaN if none.
    local_dice
        Mean over labels of the Dice of the model that the site trained, before its update is rounded or combined with
        others; NaN in rounds without it (``training.validate_local``).
    seconds
        Wall-clock time of the whole task; ``seconds_data`` (waiting for data), ``seconds_compute`` and
        ``seconds_evaluate`` are its parts.
    epsilon
        Epsilon spent so far; NaN without differential privacy.
    ledger_head, audit_head
        As in ``SiteInfo``.
    personal_dice
        As ``dice``, of the site's personal model (``common.config.personal``); empty without one, or if the hospital
        does not share its score.
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
    ledger_head: str | None = None
    audit_head: str | None = None
    local_dice: float = math.nan
    personal_dice: dict[int, float] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the labels that have one; NaN if none has."""
        return mean_of_known(self.dice.values())

    @property
    def personal_mean_dice(self) -> float:
        """As ``mean_dice``, of the site's personal model."""
        return mean_of_known(self.personal_dice.values())


def mean_of_known(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
