"""``state.json``: what the round loop needs to resume, and the digests of the files that it rests on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import FedvoxError
from common.protocol.codec import Refusal


class RunError(FedvoxError):
    """The run folder cannot be used as requested."""


class Oddity(StrEnum):
    """What was odd about an update that counted: honest sites may do it now and then, so it leads to no quarantine."""

    COPIED = "copied"
    LEANING = "leaning"
    SCALED_DOWN = "scaled-down"


class RunState(BaseModel):
    """Everything that the round loop needs to resume, besides the weights.

    Attributes
    ----------
    round
        Number of finished training rounds; their result is checkpoint ``round``.
    best_round, best_mean_dice
        The checkpoint chosen for release so far (``server.release.choice``), and its mean Dice over the sites whose
        scores count.
    highest_median_dice
        Highest median Dice over sites of all checkpoints.
    candidates
        Checkpoints that may still be chosen.
    recent
        Earlier checkpoints that the model after the last round will be averaged with (``strategy.average_rounds``).
    rounds_without_gain
        Scored checkpoints since the last gain of more than the early stop's ``min_delta``.
    accepted_rounds
        Finished rounds that changed the model.
    failed_rounds
        Rounds in a row with too few updates.
    norms
        Site -> L2 norm of its last accepted update.
    sketches, model_sketch
        Site -> sketch of its last accepted update; sketch of the model that was sent last
        (``server.rounds.judgement.copies``).
    counted
        Site -> the last round in which its update became part of the model.
    conduct
        Site -> what it was blamed for, or what was odd, in each of its last rounds; None for nothing.
    refused_last
        Site -> why its last reply was refused.
    quarantine
        Site -> why it is in quarantine.
    declared
        Site -> the numbers of training and validation patients that it declared first.
    changed
        Site in quarantine because it declared others -> the first of those.
    alarms
        What a person should look at: key -> sentence, in the order of their first appearance.
    strategy_round
        The round after which the strategy's vectors were written; 0 before the first.
    strategy_numbers
        Numbers that the strategy keeps.
    digests
        SHA-256 of every file of the run folder that the state rests on, by its path in the folder; of
        ``rounds.jsonl``, that of its first ``rounds_bytes`` bytes.
    rounds_bytes
        Size of ``rounds.jsonl`` after the last finished round.
    round_state
        SHA-256 of the state that ended the last finished round; empty if that is this one.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal[2] = 2
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    digest: str
    started: str
    round: int = 0
    best_round: int | None = None
    best_mean_dice: float | None = None
    highest_median_dice: float | None = None
    candidates: list[int] = Field(default_factory=list)
    recent: list[int] = Field(default_factory=list)
    final_mean_dice: float | None = None
    rounds_without_gain: int = 0
    accepted_rounds: int = 0
    failed_rounds: int = 0
    stopped_early: bool = False
    finished: bool = False
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    norms: dict[str, float] = Field(default_factory=dict)
    sketches: dict[str, str] = Field(default_factory=dict)
    model_sketch: str = ""
    counted: dict[str, int] = Field(default_factory=dict)
    conduct: dict[str, list[Refusal | Oddity | None]] = Field(default_factory=dict)
    refused_last: dict[str, Refusal] = Field(default_factory=dict)
    quarantine: dict[str, Refusal] = Field(default_factory=dict)
    declared: dict[str, tuple[int, int]] = Field(default_factory=dict)
    changed: dict[str, tuple[int, int]] = Field(default_factory=dict)
    alarms: dict[str, str] = Field(default_factory=dict)
    strategy_round: int = 0
    strategy_numbers: dict[str, float] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    rounds_bytes: int = 0
    round_state: str = ""

    @property
    def released_round(self) -> int:
        """Round after which the model is the one to release."""
        return self.round if self.best_round is None else self.best_round

    @property
    def checkpoints(self) -> set[int]:
        """Rounds whose checkpoints are needed: the newest, the best, and those that may be chosen or averaged."""
        return {self.round, self.released_round, *self.candidates, *self.recent}

    @property
    def lines(self) -> int:
        """Number of finished rounds with the final evaluation: of the lines of ``rounds.jsonl``."""
        return self.round + self.finished
