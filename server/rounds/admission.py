"""Admission: checks replies so that no bad update reaches the model.

A reply passes three checks. ``admit`` compares its numbers with the task and with what the site declared.
``UpdateReader`` reads the update part by part: its length and digest must match and all values must be finite.
``judge_norms`` compares the norms of a round's updates once all are known; only then are updates aggregated.

What passes here may still be too long or point the wrong way: see ``server.rounds.judgement``. The server cannot verify
that a site has the patients it declared, so ``strategy.weights`` caps how much they count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.config.privacy import PrivacyConfig
from common.errors import ProtocolError
from common.formatting import counted
from common.protocol.codec import Refusal, Result, SiteInfo, Task
from common.weights.encoding import Encoding, decode_parts, pieces_of, squared_norm, vector_bytes
from common.weights.part import WeightPart
from common.weights.store import Content, MissingWeightsError, digest_of
from server.rounds.weight_transfer import WeightTransfer

SMALLEST_LOSS, LARGEST_LOSS = -1e-3, 1e6  # a Dice loss of zero may round to slightly below zero
LARGEST_SECONDS = 1e8
CEILING_FACTOR = 10.0
SMALLEST_TOLERANCE = math.log(5)
LARGEST_TOLERANCE = math.log(10)


class RefusedError(Exception):
    """A refused reply.

    Attributes
    ----------
    code
        The reason; never text from the site.
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
        Size in bytes, as sent.
    sha256
        Its SHA-256 in ``rounds.jsonl``.
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
    steps: range | None = None,
    privacy: PrivacyConfig | None = None,
    scores_own: bool = False,
) -> None:
    """Check a reply's numbers against its task and the site's declaration.

    Parameters
    ----------
    result
        The reply. It must name an update if and only if the task was to train; ``measure`` checks the update itself.
    task
        The task that it answers.
    info
        What the site declared.
    labels
        Labels that need a Dice; no others may have one.
    steps
        Numbers of training steps that the federation allows this site; None: any.
    privacy
        The federation's privacy settings; with them a reply must report an epsilon and no loss.
    scores_own
        Whether the federation asks for ``local_dice`` in this round.

    Raises
    ------
    RefusedError
        Carries the ``Refusal`` of the failed check.
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
    if not _numbers_are_sane(result, task, steps, privacy):
        raise RefusedError(Refusal.NUMBER_OUT_OF_RANGE)
    if not (scores_own and task.train and result.validation_examples) and not math.isnan(result.local_dice):
        raise RefusedError(Refusal.NUMBER_OUT_OF_RANGE)
    if task.train and result.update is None:
        raise RefusedError(Refusal.MISSING_UPDATE)
    if not task.train and result.update is not None:
        raise RefusedError(Refusal.UNEXPECTED_UPDATE)


def _numbers_are_sane(result: Result, task: Task, steps: range | None, privacy: PrivacyConfig | None) -> bool:
    seconds = (result.seconds, result.seconds_data, result.seconds_compute, result.seconds_evaluate)
    if not all(0 <= value <= LARGEST_SECONDS for value in seconds):
        return False
    if not (result.steps >= 1 and (steps is None or result.steps in steps) if task.train else result.steps == 0):
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
    """Return whether a private site reports an epsilon, no loss, and a Dice only if it is noised."""
    if not (math.isnan(result.train_loss) and math.isnan(result.validation_loss) and result.epsilon >= 0):
        return False
    scored = privacy.validation == "noised" and result.validation_examples > 0
    return all(math.isnan(value) != scored for value in result.dice.values())


def admit_personal_score(result: Result, labels: Set[int]) -> None:
    """Check the score that a reply reports of a site's personal model; a reply without one passes.

    Parameters
    ----------
    result
        The reply.
    labels
        Labels that such a score needs; empty if there may be none.

    Raises
    ------
    RefusedError
        The score is not of these labels, or of no patients.
    """
    if result.personal_dice and set(result.personal_dice) != labels:
        raise RefusedError(Refusal.WRONG_LABELS)
    if not (result.validation_examples or math.isnan(result.personal_mean_dice)):
        raise RefusedError(Refusal.NUMBER_OUT_OF_RANGE)


def measure(
    content: Content,
    digest: str,
    size: int,
    encoding: Encoding,
    vectors: int = 1,
    kept: WeightPart | None = None,
) -> float:
    """Check an update's content part by part and return its L2 norm.

    Parameters
    ----------
    content
        Its bytes: the update, then any further vectors that the strategy needs.
    digest
        SHA-256 of the content, from the reply.
    size
        Number of values per vector.
    encoding
        Encoding of the vectors.
    vectors
        Number of vectors that the strategy needs.
    kept
        Weights that sites keep to themselves; they must be zero in every vector.

    Raises
    ------
    RefusedError
        If a value is NaN or infinite, or a weight that sites keep to themselves is not zero.
    ProtocolError
        If the length, a piece's encoding or the digest is wrong.
    """
    one = vector_bytes(size, encoding)
    if content.size != vectors * one:
        raise ProtocolError(f"an update has {counted(content.size, 'byte')}, {vectors * one} expected")
    with ThreadPoolExecutor(1) as hasher:
        hashed = hasher.submit(digest_of, content)
        norms = [_norm(content[start : start + one], size, encoding, kept) for start in range(0, content.size, one)]
        if hashed.result() != digest:
            raise ProtocolError("an update was changed or damaged after it arrived")
    return norms[0]


@dataclass(frozen=True)
class UpdateReader:
    """Reads and checks updates as they arrive.

    Attributes
    ----------
    transfer
        Provides the updates.
    size
        Number of values per vector.
    encoding
        Encoding of the vectors.
    vectors
        Number of vectors per update.
    earlier
        Digests of all updates that counted in earlier rounds of the run.
    kept
        As in ``measure``.
    """

    transfer: WeightTransfer
    size: int
    encoding: Encoding
    vectors: int = 1
    earlier: Collection[str] = frozenset()
    kept: WeightPart | None = None

    @property
    def bytes(self) -> int:
        """Return the size of every update in bytes."""
        return self.vectors * vector_bytes(self.size, self.encoding)

    def read(self, result: Result, sha256: str) -> AcceptedUpdate:
        """Read the update that a reply names, and remove it if it is refused.

        Parameters
        ----------
        result
            The reply.
        sha256
            Hash to record in ``rounds.jsonl``.

        Raises
        ------
        RefusedError, ProtocolError
            See ``measure``; also if the update is zero, or one of an earlier round: neither is work.
        MissingWeightsError
            If the update has not arrived.
        """
        digest = result.update or ""
        content = self.transfer.update(result.site, digest)
        try:
            norm = measure(content, digest, self.size, self.encoding, self.vectors, self.kept)
            if norm == 0:
                raise RefusedError(Refusal.ZERO_UPDATE)
            if digest in self.earlier:
                raise RefusedError(Refusal.REPEATED_UPDATE)
        except (RefusedError, ProtocolError):
            self.transfer.drop_update(result.site, digest)
            raise
        return AcceptedUpdate(result, norm, self.bytes, sha256)

    def read_again(self, result: Result) -> float | None:
        """Return the norm of an update accepted before a crash, or None if it no longer passes."""
        try:
            return self.read(result, "").norm
        except (RefusedError, ProtocolError, MissingWeightsError):
            return None


def _norm(content: Content, size: int, encoding: Encoding, kept: WeightPart | None) -> float:
    total = 0.0
    for piece in pieces_of(size, encoding):
        data = content[piece.offset : piece.offset + piece.size]
        for part, values in decode_parts(data, piece.count, encoding):
            squares = squared_norm(values)
            if not math.isfinite(squares):
                raise RefusedError(Refusal.NOT_FINITE)
            if kept is not None and not kept.is_clear(values, piece.start + part.start):
                raise RefusedError(Refusal.PERSONAL_WEIGHTS)
            total += squares
    return math.sqrt(total)


def judge_norms(
    norms: Mapping[str, float], known: Mapping[str, float], weights_norm: float, size: int
) -> dict[str, Refusal]:
    """Return the updates of a round that are too long compared with other sites' updates.

    * No update's norm may exceed ``CEILING_FACTOR`` times that of the model's weights.
    * Every other site is one witness, with its update of this round or, without one, its last accepted update. With
      at least two witnesses, a norm may exceed their (upper) median by a factor of 5 to 10: four robust standard
      deviations of the witnesses' log norms (from the median absolute deviation), within these limits. The bound thus
      follows the norms down as the learning rate decays, and no site is its own witness. As long as most witnesses
      are honest, the others cannot raise the bound above 10 times an honest norm.
    * With fewer witnesses, a norm may be up to 10 times the largest of the sites' last accepted norms. If no update
      was accepted yet and two sites differ by more than that, neither is counted: either may be wrong.

    There is no lower bound: a short update only slows training.

    Parameters
    ----------
    norms
        Site -> L2 norm of its update of this round.
    known
        Site -> L2 norm of its last accepted update; may include sites that have left for good.
    weights_norm
        L2 norm of the global weights; if 0, ``sqrt(size)`` is used.
    size
        Number of weights.

    Returns
    -------
    dict[str, Refusal]
        Refused site -> ``NORM_OUTLIER``, or ``NORM_DISPUTED`` for two sites that disagree.
    """
    ceiling = math.log(CEILING_FACTOR * (weights_norm or math.sqrt(size)))
    log_norms = {site: _log(norm) for site, norm in norms.items()}
    refused = {site: Refusal.NORM_OUTLIER for site, log_norm in log_norms.items() if log_norm > ceiling}
    accepted_last = {site: _log(norm) for site, norm in known.items()}
    reference = accepted_last | {site: log_norm for site, log_norm in log_norms.items() if site not in refused}
    for site, log_norm in log_norms.items():
        if site in refused:
            continue
        witnesses = [value for other, value in reference.items() if other != site]
        if len(witnesses) >= 2:
            if log_norm > _bound(witnesses):
                refused[site] = Refusal.NORM_OUTLIER
        elif accepted_last:
            if log_norm > max(accepted_last.values()) + LARGEST_TOLERANCE:
                refused[site] = Refusal.NORM_OUTLIER
        elif witnesses and abs(log_norm - witnesses[0]) > LARGEST_TOLERANCE:
            refused[site] = Refusal.NORM_DISPUTED
    return refused


def _log(norm: float) -> float:
    return math.log(max(norm, np.finfo(np.float64).tiny))


def _bound(witnesses: list[float]) -> float:
    ordered = sorted(witnesses)
    # The upper median: if half of the witnesses are too short, an honest site must still pass.
    centre = ordered[len(ordered) // 2]
    distances = sorted(abs(value - centre) for value in ordered)
    spread = 1.4826 * distances[(len(distances) - 1) // 2]
    return centre + min(max(SMALLEST_TOLERANCE, 4 * spread), LARGEST_TOLERANCE)
