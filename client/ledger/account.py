"""The content of a ledger, accounted patient by patient.

The epsilon of a set of patients is the largest of any of them. A patient's epsilon composes everything they ever took
part in: training and validation, in any dataset and federation. Adding a patient to a dataset therefore changes nothing
for the patients already in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from client.ledger.patient_identity import MARK, Patient
from common.plan.base import Frozen, PositiveInt
from common.plan.privacy import Purpose, Spend
from common.privacy.accounting import epsilon_of
from common.weights.digest import Digest

People = Mapping[Purpose, Collection[Patient]]
"""The patients trained on, and those scored on."""
PatientHistory = frozenset[tuple[float, float, int]]
"""Noise multiplier, sample rate and number of steps of everything that a patient took part in."""


def people_of(patients: Mapping[str, Patient], train: Sequence[str], validation: Sequence[str]) -> People:
    """Return the training and the validation patients, each once, from the names of their cases."""
    return {
        "training": list(dict.fromkeys(patients[name] for name in train)),
        "validation": list(dict.fromkeys(patients[name] for name in validation)),
    }


class DatasetEntry(Frozen):
    """A set of patients and its digest (``patient_identity``), recorded before anything is spent on it."""

    dataset: Digest
    patients: tuple[Annotated[tuple[Annotated[str, Field(pattern=MARK)], ...], Field(min_length=1)], ...]


class SpendLine(Frozen):
    """The cost of one round to every patient of one dataset: a ``Spend``, its dataset and mechanism."""

    purpose: Purpose
    dataset: Digest
    mechanism: Literal["Gaussian noise, Poisson sample"] = "Gaussian noise, Poisson sample"
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: PositiveInt

    @property
    def spend(self) -> Spend:
        """The cost in the accountant's form."""
        return Spend(self.purpose, self.noise_multiplier, self.sample_rate, self.steps)


class RoundEntry(Frozen):
    """One round of one run, recorded before it begins.

    Attributes
    ----------
    federation, digest
        Name and digest of the federation.
    max_epsilon, delta
        The site's limit at that time.
    attempt
        Random name of the attempt that it pays for (``client.runner.task_journal``): an attempt that is interrupted
        before anything left, and then resumed, does not pay twice. Empty without a journal.
    epsilon
        Epsilon of this round's patients at ``delta``, this round included; for readers, it is always recomputed.
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
    """What a person declared as spent when an earlier ledger was lost or could no longer be trusted.

    It counts for every patient, because it is no longer known who took part.

    Attributes
    ----------
    user, account
        As in ``client.consent.decisions.Decision``.
    reason
        Reason in the person's words.
    epsilon, delta
        Spent before this entry; both None means that nothing is left to spend.
    known
        Epsilon proven by the site's own notes and the old file, for readers; ``epsilon`` may not be smaller.
    set_aside, set_aside_sha256
        Name and digest of the old file; None if there was none.
    superseded
        Hashes of entries that this ledger no longer holds, and that a server may still name.
    """

    user: str
    account: str
    reason: Annotated[str, Field(min_length=1)]
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    delta: Annotated[float, Field(gt=0, lt=0.01)] | None
    known: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    set_aside: str | None = None
    set_aside_sha256: Digest | None = None
    superseded: tuple[Digest, ...] = ()

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon and delta belong together")
        return self

    def with_history(self, history: PatientHistory, delta: float) -> float:
        """Return the epsilon at ``delta`` of this entry composed with a later ``history``; may be infinite.

        Only one (epsilon, delta) pair of the past is known, so epsilons and deltas add up (Dwork et al. 2006).
        """
        if self.epsilon is None or self.delta is None or delta < self.delta:
            return math.inf
        if not history:
            return self.epsilon
        rest = delta - self.delta
        return self.epsilon + _epsilon(history, rest) if rest > 0 else math.inf


@dataclass(frozen=True)
class TimedRound:
    """A round entry and the time it was written, ISO 8601 in UTC."""

    time: str
    entry: RoundEntry


@dataclass(frozen=True)
class TimedRecovery:
    """A recovery entry and the time it was written, ISO 8601 in UTC."""

    time: str
    entry: RecoveryEntry


@dataclass(frozen=True)
class Account:
    """The content of a ledger.

    Attributes
    ----------
    datasets
        Patients of each dataset, by its digest.
    rounds, recoveries
        Entries in the order written.
    """

    datasets: Mapping[str, tuple[Patient, ...]] = field(default_factory=dict)
    rounds: Sequence[TimedRound] = ()
    recoveries: Sequence[TimedRecovery] = ()

    def memberships(self, patients: Iterable[Patient]) -> dict[Patient, frozenset[str]]:
        """Return the datasets that each patient was part of.

        Patients who share a mark count as one, also if they share it only through a third.
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
        """Return the largest epsilon of any of these patients.

        Parameters
        ----------
        people
            The patients, by the purpose that ``upcoming`` uses them for.
        delta
            The delta of the epsilon.
        upcoming
            Costs that are not yet in the ledger.
        federation
            Digest of the only federation to count; None counts all. What a recovery declares as spent always counts,
            because it may have been spent on this federation.
        """
        histories = self._histories(people, upcoming, federation)
        # A history contained in another cannot cost more, so it need not be computed.
        most = [one for one in histories if not any(one != other and _is_within(one, other) for other in histories)]
        return max((self._total(history, delta) for history in most), default=0.0)

    def epsilons(self, people: People, delta: float) -> list[tuple[float, int]]:
        """Return (epsilon so far, number of patients) for each distinct epsilon, in ascending order."""
        found: dict[float, int] = {}
        for history, size in self._histories(people, (), None).items():
            epsilon = self._total(history, delta)
            found[epsilon] = found.get(epsilon, 0) + size
        return sorted(found.items())

    def rounds_left(
        self, people: People, delta: float, limit: float, costs: Callable[[int], Sequence[Spend]], wanted: int
    ) -> int:
        """Return how many of ``wanted`` further rounds keep all these patients within ``limit``.

        Parameters
        ----------
        people, delta
            As for ``epsilon``.
        limit
            Largest epsilon that is allowed.
        costs
            Returns the total cost of a number of rounds.
        wanted
            Largest number of rounds to consider.
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

    def _total(self, history: PatientHistory, delta: float) -> float:
        # Recoveries by several sites describe the same past: the largest covers the others.
        if not self.recoveries:
            return _epsilon(history, delta)
        return max(item.entry.with_history(history, delta) for item in self.recoveries)

    def _histories(
        self, people: People, upcoming: Sequence[Spend], federation: str | None
    ) -> dict[PatientHistory, int]:
        """Count the patients by history, past and upcoming."""
        purposes: dict[Patient, set[Purpose]] = {}
        for purpose, patients in people.items():
            for patient in patients:
                purposes.setdefault(patient, set()).add(purpose)
        found: dict[PatientHistory, int] = {}
        known: dict[tuple[frozenset[str], frozenset[Purpose]], PatientHistory] = {}
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


def _history(spends: Iterable[Spend]) -> PatientHistory:
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        key = (spend.noise_multiplier, spend.sample_rate)
        steps[key] = steps.get(key, 0) + spend.steps
    return frozenset((*key, count) for key, count in steps.items())


def _is_within(one: PatientHistory, other: PatientHistory) -> bool:
    steps = {(noise, rate): count for noise, rate, count in other}
    return all(count <= steps.get((noise, rate), 0) for noise, rate, count in one)


def _epsilon(history: PatientHistory, delta: float) -> float:
    return epsilon_of([Spend("training", *mechanism) for mechanism in history], delta)


class _Groups:
    """Groups of marks that belong to the same patient, directly or through others (union-find)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def of(self, digest: str) -> str:
        """Return the mark that represents the whole group."""
        root = digest
        while (above := self._above.get(root, root)) != root:
            root = above
        while (above := self._above.get(digest, digest)) != root:
            self._above[digest], digest = root, above
        return root

    def join(self, patient: Patient) -> None:
        """Merge the groups of all of a patient's marks."""
        root = self.of(patient[0])
        for digest in patient[1:]:
            self._above[self.of(digest)] = root
