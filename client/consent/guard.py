"""Stands between server and site: every task is checked and counted, and every reply recorded before it leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from client.consent.disclosure import fields_that_leave
from client.consent.policy import COUNTED_EVENT, GIVEN_BACK_EVENT, SENT_EVENT, Policy, PolicyError
from common.audit import AuditError, AuditLog
from common.errors import ProtocolError
from common.protocol.codec import Answer, unpack_answer, unpack_question
from common.protocol.manifest import manifest_of
from common.protocol.messages import ErrorCode, Failure, Result, SiteInfo, Task

log = logging.getLogger("fedvox.client")

MAX_TEXT = 200


class HeldBackError(PolicyError):
    """A reply holds something that may not leave; retrying does not help."""


class TaskGuard:
    """Stands between server and site: checks the policy before a task, and records what leaves after it.

    Parameters
    ----------
    policy
        This hospital's policy.
    audit
        Log of tasks and replies, normally ``audit.jsonl`` in the site's state folder.
    attempt
        Returns the name of the current attempt, as for ``client.ledger.budget``; empty without one.
    """

    def __init__(self, policy: Policy, audit: AuditLog, attempt: Callable[[], str] = str) -> None:
        self._policy = policy
        self._audit = audit
        self._attempt = attempt

    def check(self, digest: str) -> None:
        """Return if the task may be done; record the decision either way.

        Raises
        ------
        PolicyError
            It may not, or the decision could not be recorded.
        """
        try:
            self._policy.check(digest)
        except PolicyError as error:
            self._log("task_refused", digest=digest[:MAX_TEXT], code=_code_word(error.code))
            raise
        self._log("task_accepted", digest=digest)

    def begin(self, task: Task) -> Callable[[], None]:
        """Count a task against its approval, before any work.

        Returns
        -------
        Callable[[], None]
            Takes it out of the count; for work that failed before anything was paid or sent.

        Raises
        ------
        PolicyError
            The approval is used up, or the count cannot be written.
        """
        about = {"run": task.run[:MAX_TEXT], "round": task.round, "train": task.train}
        try:
            work = self._policy.begin(task, self._attempt())
        except PolicyError as error:
            self._log("task_refused", **about, code=_code_word(error.code))
            raise

        def give_back() -> None:
            try:
                self._policy.give_back(work)
                self._log(GIVEN_BACK_EVENT, **self._policy.about(work))
            except PolicyError as error:
                log.error("the failed task stays counted: %s", error)

        try:
            self._log(COUNTED_EVENT, **about, **self._policy.about(work))
        except PolicyError:
            give_back()
            raise
        return give_back

    def shares_personal_score(self) -> bool:
        """Return whether the hospital lets the score of its personal model leave, as its site file says now.

        Raises
        ------
        PolicyError
            The file cannot be read.
        """
        return self._policy.shares_personal_score()

    def more_rounds(self) -> int:
        """Return how many rounds a person allowed beyond the federation's own.

        Raises
        ------
        PolicyError
            That cannot be read.
        """
        return self._policy.contract().more_rounds

    def has_sent(self, task: Task, attempt: str) -> bool:
        """Return whether a result of an attempt has left already, so that what it paid covers no further work.

        Raises
        ------
        AuditError
            The log is broken or cannot be read.
        """
        wanted = ("train" if task.train else "evaluate", task.run, task.round, None)
        is_counted = False
        for entry in self._audit.kept():
            if entry.event == COUNTED_EVENT and entry.details.get("attempt") == attempt:
                is_counted = True
            about = tuple(map(entry.details.get, ("kind", "run", "round", "error")))
            if is_counted and entry.event == SENT_EVENT and about == wanted:
                return True
        return False

    def changed_patients(self, run: str, info: SiteInfo) -> str | None:
        """Return what the hospital must know if the site now declares other numbers of patients to a run, or None.

        The server then puts the site into quarantine. The numbers that count are those of the last result, or of the
        first declaration.

        Raises
        ------
        AuditError
            The log is broken or cannot be read.
        """
        before: tuple[object, object] | None = None
        for entry in self._audit.kept():
            found = entry.details.get("fields")
            if entry.event != SENT_EVENT or entry.details.get("run") != run or not isinstance(found, dict):
                continue
            if "train_examples" not in found:
                before = found.get("examples"), found.get("validation_examples")
            elif before is None:
                before = found["train_examples"], found.get("validation_examples")
        if before is None or before == (info.train_examples, info.validation_examples):
            return None
        return (
            f"this site declares {info.train_examples} training and {info.validation_examples} validation patients, "
            f"and earlier in this run {before[0]} and {before[1]}: the server keeps it in quarantine until the "
            "coordinator releases it. Tell them why; if the change was not meant (scans, patients.csv, "
            "patient_from_name), undo it first"
        )

    def record(self, kind: str, question: str, answer: str, update_bytes: int = 0) -> None:
        """Record exactly what an answer holds; an exception keeps it from leaving.

        Parameters
        ----------
        kind
            Kind of work: ``hello``, ``train`` or ``evaluate``.
        question
            The server's message, as received.
        answer
            The answer, as it will be sent.
        update_bytes
            Size of the update sent with it; 0 without one.

        Raises
        ------
        HeldBackError
            The answer holds something that may not leave.
        PolicyError
            The log cannot be written.
        """
        about: dict[str, Any] = {"kind": kind, **_round_of(question)}
        try:
            content = _listed(answer)
        except ProtocolError as error:
            self._log("held_back", **about, reason=str(error)[:MAX_TEXT])
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, f"held back, on no list: {error}") from None
        update = content.update if isinstance(content, Result) else None
        if (update is None) != (update_bytes == 0):
            self._log("held_back", **about, reason="an update without its digest, or a digest without its update")
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, "the answer does not match its update")
        if isinstance(content, Result) and content.personal_dice and not self._policy.shares_personal_score():
            self._log("held_back", **about, reason="the score of the personal model, which is not shared")
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, "privacy.share_personal_score in the site file is not true")
        if isinstance(content, Failure):
            self._log(SENT_EVENT, **about, bytes=0, error=_code_word(content.code), reason=content.reason)
            return
        manifest = manifest_of(answer, update_bytes)
        self._log(SENT_EVENT, **about, **manifest, epsilon=manifest["fields"].get("epsilon"))

    def _log(self, event: str, **details: Any) -> None:
        try:
            self._audit.append(event, **details)
        except AuditError as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


def open_guard(kit: Path, state: Path, consent: Path, attempt: Callable[[], str] = str) -> TaskGuard:
    """Make the guard of a site from its kit, its state folder, the hospital's own file, and the current attempt."""
    policy = Policy(kit, state, consent)
    return TaskGuard(policy, policy.audit, attempt)


def _round_of(question: str) -> dict[str, Any]:
    """Return run and round as the server named them; empty if it did not."""
    try:
        asked = unpack_question(question)
    except ProtocolError:
        return {}
    return {"run": asked.run} | ({"round": asked.round} if isinstance(asked, Task) else {})


def _listed(answer: str) -> Answer:
    """Decode an answer that holds only what the consent document lists.

    Raises
    ------
    ProtocolError
        It holds anything else, or a value of the wrong type.
    """
    content = unpack_answer(answer)
    listed = {field.name for field in fields_that_leave() if field.message == type(content).__name__}
    names = set(json.loads(answer)) - {"format", "kind"}
    if strangers := (names | {field.name for field in fields(content)}) - listed:
        raise ProtocolError(", ".join(sorted(strangers)))
    return content


def _code_word(code: ErrorCode) -> str:
    return code.name.lower().replace("_", "-")
