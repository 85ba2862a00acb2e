"""What was spent on whom: the entries of a ledger, added up patient by patient.

The epsilon of some patients is the largest over them, of the composition of everything that each of them ever took
part in, training and validation, in whatever dataset and federation. A patient who is added to a dataset therefore
changes nothing for those who were there before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from client.ledger.patient_identity import Patient
from common.plan.base import Frozen, PositiveInt
from common.privacy.accounting import Purpose, Spend, epsilon_of
from common.privacy.calibration import PrivacyPlan
from common.weights.digest import Digest

People = Mapping[Purpose, Collection[Patient]]
"""Who is trained on, and who is scored on."""
History = frozenset[tuple[float, float, int]]
"""Noise multiplier, sample rate and number of steps of everything that somebody took part in."""


class DatasetEntry(Frozen):
    """A set of patients, written down before anything is spent on it. dataset: its digest (``patient_identity``)."""

    dataset: Digest
    patients: tuple[Annotated[tuple[Digest, ...], Field(min_length=1)], ...]


class SpendLine(Frozen):
    """What one round costs everyone in one dataset; as ``common.privacy.accounting.Spend``, and how."""

    purpose: Purpose
    dataset: Digest
    mechanism: Literal["Gaussian noise, Poisson sample"] = "Gaussian noise, Poisson sample"
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: PositiveInt

    @property
    def spend(self) -> Spend:
        """For the accountant."""
        return Spend(self.purpose, self.noise_multiplier, self.sample_rate, self.steps)


class RoundEntry(Frozen):
    """One round of one run, written down before it begins.

    Attributes
    ----------
    federation, digest
        whose.
    max_epsilon, delta
        the site's limit at that time.
    attempt
        random name of the attempt at the task that it pays for (``client.runner.task_journal``): one that is broken
        off before anything left and taken up again does not pay twice. Empty if nobody keeps a journal.
    epsilon
        that the patients of this round had spent with it, at ``delta``; for readers, it is always computed anew.
    """

    federation: str
    digest: str
    run: str
    round: int
    spends: tuple[SpendLine, ...]
    epsilon: float
    max_epsilon: float | None
    delta: float
    attempt: str = ""


class RecoveryEntry(Frozen):
    """What a person took as spent when an earlier ledger was lost or could no longer be trusted.

    It counts for every patient, for nobody knows any more who took part.

    Attributes
    ----------
    user, account
        as in ``client.consent.decisions.Decision``.
    reason
        in the person's words.
    epsilon, delta
        spent before this entry; both None is everything there was.
    known
        epsilon that the site's own notes and the old file proved, for readers; it was not allowed to say less.
    set_aside, set_aside_sha256
        name and digest of the old file, None if there was none.
    """

    user: str
    account: str
    reason: Annotated[str, Field(min_length=1)]
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    delta: Annotated[float, Field(gt=0, lt=0.01)] | None
    known: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    set_aside: str | None = None
    set_aside_sha256: Digest | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon and delta belong together")
        return self

    def with_history(self, history: History, delta: float) -> float:
        """The epsilon at ``delta`` of what this entry says and of ``history`` after it; infinite if none is left.

        What is known of the past is a single pair, so that epsilons and deltas add up (Dwork et al. 2006).
        """
        if self.epsilon is None or self.delta is None or delta < self.delta:
            return math.inf
        if not history:
            return self.epsilon
        rest = delta - self.delta
        return self.epsilon + _epsilon(history, rest) if rest > 0 else math.inf


@dataclass(frozen=True)
class TimedRound:
    """A round entry and when it was written, ISO 8601 in UTC."""

    time: str
    entry: RoundEntry


@dataclass(frozen=True)
class TimedRecovery:
    """A recovery entry and when it was written, ISO 8601 in UTC."""

    time: str
    entry: RecoveryEntry


@dataclass(frozen=True)
class Account:
    """The content of a ledger.

    Attributes
    ----------
    datasets
        by their digest.
    rounds, recoveries
        in order.
    """

    datasets: Mapping[str, tuple[Patient, ...]] = field(default_factory=dict)
    rounds: Sequence[TimedRound] = ()
    recoveries: Sequence[TimedRecovery] = ()

    def memberships(self, patients: Iterable[Patient]) -> dict[Patient, frozenset[str]]:
        """The datasets that each patient was part of.

        Two patients who share an image are one, and so are two who each share one with a third.
        """
        patients = list(patients)
        groups = _Groups()
        for patient in patients:
            groups.join(patient)
        for members in self.datasets.values():
            for patient in members:
                groups.join(patient)
        found: dict[str, set[str]] = {}
        for dataset, members in self.datasets.items():
            for patient in members:
                found.setdefault(groups.of(patient[0]), set()).add(dataset)
        return {patient: frozenset(found.get(groups.of(patient[0]), ())) for patient in patients}

    def epsilon(
        self, people: People, delta: float, upcoming: Sequence[Spend] = (), federation: str | None = None
    ) -> float:
        """The largest epsilon of any of these patients.

        Parameters
        ----------
        people
            whose, and what ``upcoming`` would use each for.
        delta
            at which.
        upcoming
            not yet in the ledger.
        federation
            digest of the only one to count; None counts all. What a recovery took as spent counts for each, for it may
            have been spent on this one.
        """
        histories = self._histories(people, upcoming, federation)
        # Who took part in less than another cannot have spent more, and need not be computed.
        most = [one for one in histories if not any(one != other and _is_within(one, other) for other in histories)]
        return max((self._total(history, delta) for history in most), default=0.0)

    def epsilons(self, people: People, delta: float) -> list[tuple[float, int]]:
        """For each group of patients with the same history: epsilon so far and number of patients, rising."""
        found: dict[float, int] = {}
        for history, size in self._histories(people, (), None).items():
            epsilon = self._total(history, delta)
            found[epsilon] = found.get(epsilon, 0) + size
        return sorted(found.items())

    def rounds_left(
        self, people: People, delta: float, limit: float, costs: Callable[[int], Sequence[Spend]], wanted: int
    ) -> int:
        """How many of ``wanted`` further rounds keep all these patients within ``limit``.

        Parameters
        ----------
        people, delta
            as for ``epsilon``.
        limit
            largest epsilon that is allowed.
        costs
            what so many rounds cost together.
        wanted
            at most as many.
        """

        def fits(rounds: int) -> bool:
            return self.epsilon(people, delta, costs(rounds)) <= limit

        if fits(wanted):
            return wanted
        low, high = 0, wanted
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def _total(self, history: History, delta: float) -> float:
        # Recoveries by several sites speak of the same past: the one that says most covers the others.
        if not self.recoveries:
            return _epsilon(history, delta)
        return max(item.entry.with_history(history, delta) for item in self.recoveries)

    def _histories(self, people: People, upcoming: Sequence[Spend], federation: str | None) -> dict[History, int]:
        """What the patients took part in, past and upcoming, and how many of them have the same behind them."""
        purposes: dict[Patient, set[Purpose]] = {}
        for purpose, patients in people.items():
            for patient in patients:
                purposes.setdefault(patient, set()).add(purpose)
        found: dict[History, int] = {}
        known: dict[tuple[frozenset[str], frozenset[Purpose]], History] = {}
        for patient, datasets in self.memberships(purposes).items():
            key = (datasets, frozenset(purposes[patient]))
            if key not in known:
                future = [spend for spend in upcoming if spend.purpose in purposes[patient]]
                known[key] = _history([*self._spends(datasets, federation), *future])
            found[known[key]] = found.get(known[key], 0) + 1
        return found

    def _spends(self, datasets: frozenset[str], federation: str | None) -> list[Spend]:
        return [
            line.spend
            for item in self.rounds
            if federation is None or item.entry.digest == federation
            for line in item.entry.spends
            if line.dataset in datasets
        ]


def _history(spends: Iterable[Spend]) -> History:
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        key = (spend.noise_multiplier, spend.sample_rate)
        steps[key] = steps.get(key, 0) + spend.steps
    return frozenset((*key, count) for key, count in steps.items())


def _is_within(one: History, other: History) -> bool:
    steps = {(noise, rate): count for noise, rate, count in other}
    return all(count <= steps.get((noise, rate), 0) for noise, rate, count in one)


def _epsilon(history: History, delta: float) -> float:
    return epsilon_of([Spend("training", *mechanism) for mechanism in history], delta)


class _Groups:
    """Image files that belong to the same patient, directly or through others."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, digest: str) -> str:
        """The file that stands for the whole group."""
        root = digest
        while (above := self._above.get(root, root)) != root:
            root = above
        while (above := self._above.get(digest, digest)) != root:
            self._above[digest], digest = root, above
        return root

    def join(self, patient: Patient) -> None:
        """All files of a patient belong together."""
        root = self.of(patient[0])
        for digest in patient[1:]:
            self._above[self.of(digest)] = root


def costs_of(plan: PrivacyPlan, rounds: int, *, whole: bool = True) -> list[Spend]:
    """What so many rounds of a federation cost together; with the last scoring of its model if that is all of it."""
    if rounds == 0:
        return []
    trained = plan.training
    costs = [Spend("training", trained.noise_multiplier, trained.sample_rate, rounds * trained.steps)]
    if (scored := plan.validation) is not None:
        times = (rounds + whole) * scored.steps
        costs.append(Spend("validation", scored.noise_multiplier, scored.sample_rate, times))
    return costs
