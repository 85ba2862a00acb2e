"""What this hospital allows: every task is checked before it begins, every reply is written down before it leaves.

Decisions are read anew for every task, so that a pause or a withdrawal holds from the next one on. Whatever cannot be
read, and whatever is in doubt, is refused.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from client.consent.decisions import DecisionBook, DecisionsError
from client.consent.disclosure import fields_that_leave
from client.consent.site_config import SITE_FILE, SiteConfig, load_site_config
from client.state_folder import AUDIT_FILE
from common.audit import AuditError, AuditLog
from common.config.federation import FederationConfig
from common.errors import ConfigError, FedvoxError, OutputError, ProtocolError
from common.protocol.codec import Answer, unpack_answer, unpack_question
from common.protocol.manifest import manifest_of
from common.protocol.messages import ErrorCode, Failure, Result, Task

MAX_TEXT = 200


class PolicyError(FedvoxError):
    """This hospital does not do what was asked; the server learns the ``code`` alone."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class HeldBackError(PolicyError):
    """Something was about to leave that may not; asking again does not help."""


class Policy:
    """Decides whether this hospital does a task.

    Parameters
    ----------
    state
        the site's state folder.
    config
        the federation of the site's own kit; tasks of any other are refused.
    site
        what the hospital allows; a path is a site file that is read anew at every check.
    """

    def __init__(self, state: Path, config: FederationConfig, site: SiteConfig | Path) -> None:
        self._config = config
        self._digest = config.digest()
        self._site = site
        self._book = DecisionBook(state)

    def check(self, digest: str) -> None:
        """Returns if a task of the federation with this digest may be done now.

        Raises
        ------
        PolicyError
            it may not.
        """
        try:
            decisions = self._book.read()
            site = load_site_config(self._site) if isinstance(self._site, Path) else self._site
        except (DecisionsError, ConfigError) as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None
        if decisions.withdrawn is not None:
            raise PolicyError(
                ErrorCode.WITHDRAWN, f"withdrawn by {decisions.withdrawn.user}; approve to take part again"
            )
        if decisions.paused is not None:
            raise PolicyError(ErrorCode.PAUSED, f"paused by {decisions.paused.user}; fedvox-client resume ends it")
        if site.paused:
            raise PolicyError(ErrorCode.PAUSED, "paused in the site file; set paused: false to go on")
        if digest != self._digest:
            raise PolicyError(
                ErrorCode.NOT_APPROVED, f"the server runs federation {digest[:12]}, this kit is for {self._digest[:12]}"
            )
        if violations := site.privacy.violations(self._config):
            raise PolicyError(ErrorCode.PRIVACY_REQUIRED, "; ".join(violations))
        if violations := site.limits.violations(self._config):
            raise PolicyError(ErrorCode.OUTSIDE_LIMITS, f"outside the site file's limits: {'; '.join(violations)}")
        if decisions.approval(digest, automatic=False) is not None:
            return
        if not site.limits.automatic_approval:
            raise PolicyError(ErrorCode.NOT_APPROVED, "not approved; see fedvox-client review, then approve")
        try:
            self._book.approve_automatically(self._config.name, digest)
        except (AuditError, OutputError, DecisionsError) as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


class TaskGuard:
    """Stands between server and site: asks the policy before a task, writes down what leaves after it.

    Parameters
    ----------
    policy
        of this hospital.
    audit
        where tasks and replies are written down; by rule ``audit.jsonl`` in the site's state folder.
    """

    def __init__(self, policy: Policy, audit: AuditLog) -> None:
        self._policy = policy
        self._audit = audit

    def check(self, digest: str) -> None:
        """Returns if the task may be done, and writes it down either way.

        Raises
        ------
        PolicyError
            it may not, or it could not be written down.
        """
        try:
            self._policy.check(digest)
        except PolicyError as error:
            self._log("task_refused", digest=digest[:MAX_TEXT], code=_code_word(error.code))
            raise
        self._log("task_accepted", digest=digest)

    def record(self, kind: str, question: str, answer: str, update_bytes: int = 0) -> None:
        """Writes down exactly what an answer holds; raising keeps it from leaving.

        Parameters
        ----------
        kind
            of the work: ``hello``, ``train`` or ``evaluate``.
        question
            the server's message, as it came.
        answer
            as it will leave.
        update_bytes
            size of the update that goes beside it.

        Raises
        ------
        HeldBackError
            the answer holds something that may not leave.
        PolicyError
            the log cannot be written.
        """
        about: dict[str, Any] = {"kind": kind, **_round_of(question)}
        try:
            content = _listed(answer)
        except ProtocolError as error:
            self._log("held_back", **about, reason=str(error)[:MAX_TEXT])
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, f"about to leave, but on no list: {error}") from None
        update = content.update if isinstance(content, Result) else None
        if (update is None) != (update_bytes == 0):
            self._log("held_back", **about, reason="an update without its digest, or a digest without its update")
            raise HeldBackError(ErrorCode.REFUSED_BY_SITE, "the answer and the update beside it do not fit")
        if isinstance(content, Failure):
            self._log("sent", **about, bytes=0, error=_code_word(content.code), reason=content.reason)
            return
        manifest = manifest_of(answer, update_bytes)
        self._log("sent", **about, **manifest, epsilon=manifest["fields"].get("epsilon"))

    def _log(self, event: str, **details: Any) -> None:
        try:
            self._audit.append(event, **details)
        except AuditError as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


def open_guard(state: Path, config: FederationConfig) -> TaskGuard:
    """The guard of a site that keeps site file, decisions and audit log in its state folder."""
    return TaskGuard(Policy(state, config, state / SITE_FILE), AuditLog(state / AUDIT_FILE))


def _round_of(question: str) -> dict[str, Any]:
    """Run and round as the server wrote them, if it did."""
    try:
        asked = unpack_question(question)
    except ProtocolError:
        return {}
    return {"run": asked.run} | ({"round": asked.round} if isinstance(asked, Task) else {})


def _listed(answer: str) -> Answer:
    """An answer, if it holds nothing but what the consent document lists.

    Raises
    ------
    ProtocolError
        it holds anything else, or a value of another kind than its field may have.
    """
    content = unpack_answer(answer)
    listed = {field.name for field in fields_that_leave() if field.message == type(content).__name__}
    names = set(json.loads(answer)) - {"format", "kind"}
    if strangers := (names | {field.name for field in fields(content)}) - listed:
        raise ProtocolError(", ".join(sorted(strangers)))
    return content


def _code_word(code: ErrorCode) -> str:
    return code.name.lower().replace("_", "-")
