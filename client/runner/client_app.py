"""The Flower ClientApp of a site: unpack, check, train or score, pack. No training code.

The same app runs in simulation and at a hospital. It sends only what ``common.protocol.codec`` lists. On an error it
sends a code and the name of the exception class; the message and the traceback stay in the site's own log.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import flwr
import numpy as np
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

import common
from client.runner.gradient_memory import GradientMemory
from client.runner.personal_model import PersonalModel
from client.site_vectors import Kept
from client.training.personal import LocalRound
from client.training.scaled_step import NonFiniteLossError
from client.training.trainer import Trainer
from common.errors import ProtocolError, was_interrupted
from common.imaging.cache.case_cache import CachedCase
from common.plan.privacy import PrivacyPlan, Spend
from common.protocol.codec import (
    Answer,
    ErrorCode,
    Hello,
    Question,
    Result,
    SiteInfo,
    Task,
    Vector,
    from_record,
    pack,
    to_record,
    unpack_question,
)
from common.protocol.messages import mean_of_known
from common.weights.encoding import ErrorFeedback, vector_of, vectors_of
from common.weights.store import WeightStore

log = logging.getLogger("fedvox.client")


class Observer(Protocol):
    """Follows a site's work, as a progress display on the same machine does."""

    def site_started(self, round: int, site: str, steps: int) -> None:
        """Handle the start of a round."""

    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Handle the end of step ``step`` of ``steps``."""


class Guard(Protocol):
    """Stands between the server and the site: decides which tasks the site may do."""

    def check(self, digest: str) -> None:
        """Raise a FedvoxError with a ``code`` unless the site currently takes part in this federation."""

    def begin(self, task: Task) -> Callable[[], None]:
        """Count a task against what was approved, before any work.

        Raises a FedvoxError with a ``code`` if it is too much. Returns what takes the task out of the count, for work
        that failed before anything was paid or sent.
        """

    def shares_personal_score(self) -> bool:
        """Return whether the hospital lets the score of its personal model leave."""


class Continuity(Protocol):
    """Notices a site whose records were set back, as ``client.ledger.rollback`` does."""

    def check(self, question: Question) -> None:
        """Raise a FedvoxError with a ``code`` if the site's records lack what the server says they held."""

    def stamp(self, answer: Answer) -> Answer:
        """Return the answer with what the site's records hold now."""


@dataclass(frozen=True)
class SiteWeights:
    """Where a site reads the weights that a task names, and where it writes its update."""

    inbox: WeightStore
    outbox: WeightStore


class Budget(Protocol):
    """The privacy budget of the site's patients."""

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        """Record what a round will cost, before it begins, and return the epsilon spent so far, this round included.

        Raises a FedvoxError with a ``code``, and records nothing, if the site's limit does not allow the round.
        """


@dataclass(frozen=True)
class Site:
    """One hospital's patients, and the trainer that works on them.

    Raises
    ------
    ValueError
        The trainer, the privacy plan and the budget do not belong together.

    Attributes
    ----------
    train_cases, validation_cases
        No patient has scans in both.
    seed
        Seed of patch drawing and augmentation; differs between sites.
    digest
        Digest of the federation that this site agreed to.
    feedback
        Accumulated rounding error of lossy uploads; lasts as long as the site stays open.
    privacy, budget
        What a round costs the patients, and the ledger that pays; None without differential privacy.
    memory
        What the site keeps between rounds for its algorithm; None for most algorithms.
    personal
        The site's personal model; None if the federation has none.
    """

    name: str
    train_cases: Sequence[CachedCase]
    validation_cases: Sequence[CachedCase]
    seed: int
    digest: str
    trainer: Trainer
    observer: Observer | None = None
    feedback: ErrorFeedback = field(default_factory=ErrorFeedback)
    privacy: PrivacyPlan | None = None
    budget: Budget | None = None
    memory: GradientMemory | None = None
    personal: PersonalModel | None = None

    def __post_init__(self) -> None:
        if self.trainer.privacy != self.privacy or (self.budget is None) != (self.privacy is None):
            raise ValueError(f"{self.name}: the trainer, the privacy plan and the budget do not belong together")

    @property
    def train_examples(self) -> int:
        """The declared size, which weights the update: scans, or under differential privacy patients."""
        return self._examples(self.train_cases)

    @property
    def validation_examples(self) -> int:
        """As ``train_examples``, of the validation cases."""
        return self._examples(self.validation_cases)

    @property
    def steps(self) -> int:
        """Training steps of a round, those of a personal model included."""
        scans = len(self.train_cases)
        return self.trainer.config.steps_of(scans) + (self.personal.method.own_steps(scans) if self.personal else 0)

    def _examples(self, cases: Sequence[CachedCase]) -> int:
        return len(cases) if self.privacy is None else len({case.owner for case in cases})


OpenSite = Callable[[Context], Site]


class WrongFederationError(ProtocolError):
    """The server runs a different configuration from the one this site agreed to."""


def make_client_app(
    open_site: OpenSite, weights: SiteWeights, guard: Guard | None = None, continuity: Continuity | None = None
) -> ClientApp:
    """Make a ClientApp that answers for the site that ``open_site`` returns for Flower's context.

    Parameters
    ----------
    open_site
        Returns the site; called only after the guard has allowed the task.
    weights
        Stores of the weights and updates that messages name.
    guard
        A hospital's guard; a simulation has none.
    continuity
        Compares a hospital's records with the server's; a simulation has none.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            question = unpack_question(from_record(message.content))
            if guard is not None:
                guard.check(question.digest)
            if continuity is not None:
                continuity.check(question)
            found = _answer(question, open_site(context), weights, guard)
            if continuity is not None:
                found = continuity.stamp(found)
        except Exception as error:  # only an error code and a class name may leave the site
            if was_interrupted(error):  # in a simulation, by who runs it
                raise KeyboardInterrupt from error
            return _failure(error, message)
        return Message(to_record(pack(found)), reply_to=message)

    app.query("hello")(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def _answer(question: Question, site: Site, weights: SiteWeights, guard: Guard | None) -> Answer:
    if question.digest != site.digest:
        raise WrongFederationError("the server runs a different federation file from the one this site agreed to")
    return _declaration(site) if isinstance(question, Hello) else _work(question, site, weights, guard)


def _failure(error: Exception, message: Message) -> Message:
    log.error("task failed", exc_info=error)
    return Message(Error(code=_code_of(error), reason=type(error).__name__), reply_to=message)


def _code_of(error: Exception) -> ErrorCode:
    code = getattr(error, "code", None)
    if isinstance(code, ErrorCode):
        return code
    if isinstance(error, WrongFederationError):
        return ErrorCode.WRONG_FEDERATION
    if isinstance(error, ProtocolError):
        return ErrorCode.BAD_TASK
    if isinstance(error, NonFiniteLossError):
        return ErrorCode.NON_FINITE_LOSS
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ErrorCode.OUT_OF_MEMORY
    return ErrorCode.INTERNAL


def _declaration(site: Site) -> SiteInfo:
    return SiteInfo(
        site=site.name,
        train_examples=site.train_examples,
        validation_examples=site.validation_examples,
        fedvox=common.__version__,
        flwr=flwr.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=site.trainer.device.type,
        precision=site.trainer.precision,
    )


def _work(task: Task, site: Site, weights: SiteWeights, guard: Guard | None) -> Result:
    started = time.perf_counter()
    if task.refused_last is not None:
        log.warning("round %d: the server did not count the last reply: %s", task.round, task.refused_last)
    size, memory = site.trainer.layout.size, site.memory
    vectors = 1 if memory is None else 1 + memory.received
    model, *received = vectors_of(weights.inbox.get(task.model), size, task.download, vectors)
    # Looked at before anything is counted or paid.
    if not (np.isfinite(model.min()) and np.isfinite(model.max())):
        raise ProtocolError("the model's weights are not all finite")
    give_back = guard.begin(task) if guard is not None else _nothing
    is_paid = False
    try:
        correction = memory.correction(task, size, received) if memory is not None and task.train else None
        kept = Kept() if site.personal is None else site.personal.kept(task)
        epsilon = _spend(task, site)
        is_paid = site.privacy is not None
        result, update = _evaluate_then_train(task, model, site, started, epsilon, correction, kept)
        # Asked last: the hospital may have changed its mind during the training.
        if result.personal_dice and guard is not None and not guard.shares_personal_score():
            result = replace(result, personal_dice={})
    except Exception:
        if not is_paid:
            give_back()
        raise
    if update is None:
        return result
    pieces = site.feedback.encode(update, task.upload)
    digest = weights.outbox.put(data for _, data in pieces)
    if memory is not None and correction is not None:
        memory.remember(task, result.steps, correction, vector_of(weights.outbox.get(digest), size, task.upload))
    return replace(result, update=digest)


def _nothing() -> None:
    """Give nothing back: in a simulation nothing is counted."""


def _evaluate_then_train(
    task: Task,
    weights: Vector,
    site: Site,
    started: float,
    epsilon: float,
    correction: Vector | None,
    kept: Kept,
) -> tuple[Result, Vector | None]:
    trainer, observer = site.trainer, site.observer
    steps = site.steps if task.train else 0
    if observer is not None:
        observer.site_started(task.round, site.name, steps)
    validation = trainer.validate(weights, site.validation_cases, task.round, site.seed)
    personal = site.personal
    own = None if personal is None else personal.score(task, weights, kept, site.validation_cases)
    training, local_dice, seconds_local = None, math.nan, 0.0
    if task.train:

        def on_step(step: int, loss: float | None) -> None:
            if observer is not None:
                observer.site_step(task.round, site.name, step, steps, loss)

        local = LocalRound(site.train_cases, task.round, site.seed, on_step, correction)
        training = local.train(trainer, weights) if personal is None else personal.train(task, weights, kept, local)
        local_dice, seconds_local = _score_own_model(task, weights + training.update, site)
    told: Callable[[float], float] = float if site.privacy is None else coarse
    result = Result(
        site=site.name,
        run=task.run,
        round=task.round,
        examples=site.train_examples,
        validation_examples=site.validation_examples,
        steps=training.steps if training else 0,
        train_loss=training.loss if training else math.nan,
        validation_loss=validation.loss,
        dice=validation.dice,
        seconds=told(time.perf_counter() - started),
        seconds_data=told(training.seconds_data if training else 0.0),
        seconds_compute=told(training.seconds_compute if training else 0.0),
        seconds_evaluate=told(validation.seconds + seconds_local + (own.seconds if own else 0.0)),
        epsilon=epsilon,
        local_dice=local_dice,
        # Exact, so that it stays here under differential privacy.
        personal_dice=own.dice if own and site.privacy is None else {},
    )
    return result, training.update if training else None


def _score_own_model(task: Task, weights: Vector, site: Site) -> tuple[float, float]:
    """Return the mean Dice of the model that the site trained, and the seconds taken; NaN and 0 if nobody asks."""
    # Under privacy nothing has paid for another score.
    if not site.trainer.config.scores_own_model(task.round) or site.privacy is not None:
        return math.nan, 0.0
    validation = site.trainer.validate(weights, site.validation_cases, task.round, site.seed)
    return mean_of_known(validation.dice.values()), validation.seconds


def coarse(seconds: float) -> float:
    """Round a duration up to 1, 2 or 5 times a power of ten, from 1 second on.

    Under differential privacy: how long a step takes depends on how many patients it drew.
    """
    if seconds <= 0:
        return 0.0
    power = 10.0 ** max(0, math.floor(math.log10(seconds)))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if seconds <= step * power)


def _spend(task: Task, site: Site) -> float:
    """Pay for everything that the task computes from patients, before computing any of it."""
    if site.privacy is None or site.budget is None:
        return math.nan
    spends = [site.privacy.training] if task.train else []
    if site.privacy.validation is not None and site.validation_cases:
        spends.append(site.privacy.validation)
    return site.budget.spend(task.run, task.round, spends)
