"""An approval is a contract that is counted: how much of it is used, whatever the server calls its runs.

Work is counted before it begins, under the random name of its attempt (``client.runner.task_journal``), so that work
which goes on after a crash counts once, and an answer that is sent again is not counted again.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.errors import FedvoxError
from common.formatting import counted
from common.plan.base import Frozen

ALLOWS_MORE = "fedvox-client approve --more-rounds N allows more"


class UsedUpError(FedvoxError):
    """The approval does not cover any more of this work."""


class Begun(Frozen):
    """Work that was begun: the name of its attempt, and whether it trains; all work scores the model."""

    attempt: str
    train: bool


class Contract(Frozen):
    """What was begun of one approved federation at one site.

    Attributes
    ----------
    more_rounds
        Rounds that a person allowed beyond the federation's own.
    given_back
        How often work that failed before anything left was taken out of ``begun`` again.
    begun
        All other work.
    """

    more_rounds: int = 0
    given_back: int = 0
    begun: tuple[Begun, ...] = ()

    def summary(self, rounds: int) -> str:
        """Return in words what is used of an approval of ``rounds`` rounds."""
        allowed = rounds + self.more_rounds
        more = f", {self.more_rounds} of them allowed later" if self.more_rounds else ""
        return f"{self._trainings} of {counted(allowed, 'training')} used{more}"

    def is_used_up(self, rounds: int) -> bool:
        """Whether an approval of ``rounds`` rounds covers no further training."""
        return self._trainings >= rounds + self.more_rounds

    def with_known(self, works: Iterable[Begun]) -> Contract:
        """Return the contract with work that is known from elsewhere, such as the audit log."""
        missing = tuple(work for work in works if work not in self.begun)
        return self.model_copy(update={"begun": (*self.begun, *missing)})

    def with_begun(self, work: Begun, rounds: int) -> Contract:
        """Return the contract with one more attempt; the same one counts once.

        Parameters
        ----------
        work
            The attempt.
        rounds
            Rounds of the federation: as many trainings are covered, and one scoring more.

        Raises
        ------
        UsedUpError
            The approval does not cover it.
        """
        if work in self.begun:
            return self
        allowed = rounds + self.more_rounds
        if work.train and self._trainings >= allowed:
            raise UsedUpError(f"all {counted(allowed, 'training')} of the approval are used; {ALLOWS_MORE}")
        if len(self.begun) > allowed:
            raise UsedUpError(f"all {counted(allowed + 1, 'scoring')} of the approval are used; {ALLOWS_MORE}")
        return self.model_copy(update={"begun": (*self.begun, work)})

    def without(self, work: Begun, rounds: int) -> Contract:
        """Return the contract without an attempt that failed; only as many are given back as there are rounds."""
        if work not in self.begun or self.given_back >= rounds + self.more_rounds:
            return self
        begun = tuple(other for other in self.begun if other != work)
        return self.model_copy(update={"begun": begun, "given_back": self.given_back + 1})

    def with_more(self, rounds: int) -> Contract:
        """Return the contract with ``rounds`` more rounds."""
        return self.model_copy(update={"more_rounds": self.more_rounds + rounds})

    @property
    def _trainings(self) -> int:
        return sum(work.train for work in self.begun)
