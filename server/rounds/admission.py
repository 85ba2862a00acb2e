"""What the server refuses to count: one bad reply must never reach the model.

A reply passes three checks. ``admit`` compares its numbers with the task and with what the site declared.
``UpdateReader`` reads the update once, a part at a time: everything must be finite. ``judge_norms`` compares how far
the sites of a round moved, when all of them are known; only then is anything folded into the model.

What this does not stop: an update within the norm's bound may point in any direction. A minority of sites can push the
model by as much as honest sites of their weight can, and no check of single updates sees it; robust aggregation or
fewer, better known sites are the answer. Nor does the server see whether a site has the patients that it declared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.config.privacy import PrivacyConfig
from common.errors import ProtocolError
from common.protocol.codec import Refusal, Result, SiteInfo, Task
from common.weights.encoding import Encoding, decode_parts, pieces_of, squared_norm, vector_bytes
from common.weights.store import Content, MissingWeightsError, digest_of
from server.rounds.weight_transfer import WeightTransfer

SMALLEST_LOSS, LARGEST_LOSS = -1e-3, 1e6  # a Dice loss of zero may be rounded to just below it
LARGEST_SECONDS = 1e8
CEILING_FACTOR = 10.0
SMALLEST_TOLERANCE = math.log(5)
LARGEST_TOLERANCE = math.log(10)


class RefusedError(Exception):
    """A reply that is not counted.

    Attributes
    ----------
    code
        Why; never text from the site.
    """

    def __init__(self, code: Refusal) -> None:
        self.code = code
        super().__init__(str(code))


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that passed admission.

    Attributes
    ----------
    result
        The reply that names it.
    norm
        Its L2 norm.
    size
        Bytes as sent.
    sha256
        What ``rounds.jsonl`` says of it.
    """

    result: Result
    norm: float
    size: int
    sha256: str


def admit(
    result: Result,
    task: Task,
    info: SiteInfo,
    labels: set[int],
    most_steps: int | None = None,
    privacy: PrivacyConfig | None = None,
) -> None:
    """Check a reply's numbers against the task that it answers and against what the site declared.

    Parameters
    ----------
    result
        The numbers. They must name an update exactly when training was asked for; its values are left to ``measure``.
    task
        What was asked.
    info
        What the site declared.
    labels
        A Dice must be there for each of them and for no other.
    most_steps
        Local steps that the federation allows in a round.
    privacy
        Of the federation; with it no loss may be there, and an epsilon must.

    Raises
    ------
    RefusedError
        With the ``Refusal`` that says which.
    """
    if result.site != info.site:
        raise RefusedError(Refusal.WRONG_SITE)
    if result.run != task.run:
        raise RefusedError(Refusal.WRONG_RUN)
    if result.round != task.round:
        raise RefusedError(Refusal.WRONG_ROUND)
    if set(result.dice) != labels:
        raise RefusedError(Refusal.WRONG_LABELS)
    if (result.examples, result.validation_examples) != (info.train_examples, info.validation_examples):
        raise RefusedError(Refusal.EXAMPLES_DIFFER)
    if not _numbers_are_sane(result, task, most_steps, privacy):
        raise RefusedError(Refusal.NUMBER_OUT_OF_RANGE)
    if task.train and result.update is None:
        raise RefusedError(Refusal.MISSING_UPDATE)
    if not task.train and result.update is not None:
        raise RefusedError(Refusal.UNEXPECTED_UPDATE)


def _numbers_are_sane(result: Result, task: Task, most_steps: int | None, privacy: PrivacyConfig | None) -> bool:
    seconds = (result.seconds, result.seconds_data, result.seconds_compute, result.seconds_evaluate)
    if not all(0 <= value <= LARGEST_SECONDS for value in seconds):
        return False
    if not (1 <= result.steps <= (most_steps or result.steps) if task.train else result.steps == 0):
        return False
    if privacy is None:
        return _scores_are_sane(result, task)
    return _private_scores_are_sane(result, privacy)


def _scores_are_sane(result: Result, task: Task) -> bool:
    if not (math.isnan(result.epsilon) or result.epsilon >= 0):
        return False
    if result.validation_examples:
        if not SMALLEST_LOSS <= result.validation_loss <= LARGEST_LOSS:
            return False
    elif not (math.isnan(result.validation_loss) and math.isnan(result.mean_dice)):
        return False
    if task.train:
        return SMALLEST_LOSS <= result.train_loss <= LARGEST_LOSS
    return math.isnan(result.train_loss)


def _private_scores_are_sane(result: Result, privacy: PrivacyConfig) -> bool:
    """Refuse a site that lets out a loss, or a Dice that shall not leave: it protects nobody."""
    if not (math.isnan(result.train_loss) and math.isnan(result.validation_loss) and result.epsilon >= 0):
        return False
    scored = privacy.validation == "noised" and result.validation_examples > 0
    return all(math.isnan(value) != scored for value in result.dice.values())


def measure(content: Content, digest: str, size: int, encoding: Encoding, vectors: int = 1) -> float:
    """Read an update once, a part at a time, and return its L2 norm.

    Parameters
    ----------
    content
        Its bytes: the update and, if the strategy asks for more vectors, those after it.
    digest
        SHA-256 that the reply gives of it.
    size
        Values of a vector.
    encoding
        Their form.
    vectors
        How many the strategy asks for.

    Raises
    ------
    RefusedError
        If a value is NaN or infinite.
    ProtocolError
        If the length, a piece's form or the digest is not what was agreed.
    """
    one = vector_bytes(size, encoding)
    if content.size != vectors * one:
        raise ProtocolError(f"an update has {content.size} bytes, {vectors * one} expected")
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(digest_of, content)
        norms = [_norm(content[start : start + one], size, encoding) for start in range(0, content.size, one)]
        if hashed.result() != digest:
            raise ProtocolError("an update was changed or damaged after it came")
    return norms[0]


@dataclass(frozen=True)
class UpdateReader:
    """Reads updates as they come in.

    Attributes
    ----------
    transfer
        Where they are.
    size
        Values of a vector.
    encoding
        Their form.
    vectors
        How many an update has, as the strategy asks.
    """

    transfer: WeightTransfer
    size: int
    encoding: Encoding
    vectors: int = 1

    @property
    def bytes(self) -> int:
        """Return the length of every update."""
        return self.vectors * vector_bytes(self.size, self.encoding)

    def read(self, result: Result, sha256: str) -> AcceptedUpdate:
        """Read the update that a reply names; one that may not count is removed.

        Parameters
        ----------
        result
            The reply.
        sha256
            What ``rounds.jsonl`` shall say of it.

        Raises
        ------
        RefusedError, ProtocolError
            As ``measure``.
        MissingWeightsError
            If the update has not come.
        """
        digest = result.update or ""
        content = self.transfer.update(result.site, digest)
        try:
            norm = measure(content, digest, self.size, self.encoding, self.vectors)
        except (RefusedError, ProtocolError):
            self.transfer.drop_update(result.site, digest)
            raise
        return AcceptedUpdate(result, norm, self.bytes, sha256)

    def read_again(self, result: Result) -> float | None:
        """Return the norm of an update that was accepted before a crash; None if it does not count now."""
        try:
            return self.read(result, "").norm
        except (RefusedError, ProtocolError, MissingWeightsError):
            return None


def _norm(content: Content, size: int, encoding: Encoding) -> float:
    total = 0.0
    for piece in pieces_of(size, encoding):
        data = content[piece.offset : piece.offset + piece.size]
        squares = sum(squared_norm(values) for _, values in decode_parts(data, piece.count, encoding))
        if not math.isfinite(squares):
            raise RefusedError(Refusal.NOT_FINITE)
        total += squares
    return math.sqrt(total)


def judge_norms(
    norms: Mapping[str, float], known: Mapping[str, float], weights_norm: float, size: int
) -> dict[str, Refusal]:
    """Say which updates of a round moved too far, by the other sites' word.

    * No update may be longer than ``CEILING_FACTOR`` times the model's own weights.
    * Every other site is one witness: its update of this round or, where there is none, its last accepted one. With at
      least two witnesses an update may be longer than their (upper) median by a factor of 5 to 10: four robust
      standard deviations of the witnesses' log norms (from the median absolute deviation), within these limits. So
      the bound follows the federation down as the learning rate decays, a site is never its own witness, and as long
      as most witnesses are honest nobody else can move the bound beyond an honest norm times 10.
    * With fewer witnesses, an update may be 10 times as long as the longest that was accepted last. Where nothing was
      accepted yet and two sites differ by more than that, nobody can say which is wrong: neither is counted.

    There is no lower bound: a short update slows training and harms nothing else.

    Parameters
    ----------
    norms
        Site -> L2 norm of its update, of this round.
    known
        Site -> L2 norm of its last accepted update; sites that are gone for good may be left in.
    weights_norm
        L2 norm of the global weights; if 0, every weight counts as 1.
    size
        Number of weights.

    Returns
    -------
    dict[str, Refusal]
        Refused site -> ``NORM_OUTLIER``, or ``NORM_DISPUTED`` for the two that nobody can decide between.
    """
    ceiling = math.log(CEILING_FACTOR * (weights_norm or math.sqrt(size)))
    lengths = {site: _log(norm) for site, norm in norms.items()}
    refused = {site: Refusal.NORM_OUTLIER for site, length in lengths.items() if length > ceiling}
    accepted_last = {site: _log(norm) for site, norm in known.items()}
    voices = accepted_last | {site: length for site, length in lengths.items() if site not in refused}
    for site, length in lengths.items():
        if site in refused:
            continue
        witnesses = [voice for other, voice in voices.items() if other != site]
        if len(witnesses) >= 2:
            if length > _bound(witnesses):
                refused[site] = Refusal.NORM_OUTLIER
        elif accepted_last:
            if length > max(accepted_last.values()) + LARGEST_TOLERANCE:
                refused[site] = Refusal.NORM_OUTLIER
        elif witnesses and abs(length - witnesses[0]) > LARGEST_TOLERANCE:
            refused[site] = Refusal.NORM_DISPUTED
    return refused


def _log(norm: float) -> float:
    return math.log(max(norm, np.finfo(np.float64).tiny))


def _bound(witnesses: list[float]) -> float:
    ordered = sorted(witnesses)
    # Of an even number the upper one: half of the witnesses being too short must not condemn an honest site.
    centre = ordered[len(ordered) // 2]
    distances = sorted(abs(value - centre) for value in ordered)
    spread = 1.4826 * distances[(len(distances) - 1) // 2]
    return centre + min(max(SMALLEST_TOLERANCE, 4 * spread), LARGEST_TOLERANCE)
