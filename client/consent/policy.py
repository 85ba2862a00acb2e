"""The hospital's policy: checks every task before it begins and records every reply before it leaves.

Decisions are read again for every task, so a pause or a withdrawal takes effect with the next one. If anything cannot
be read or is in doubt, the task is refused.
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
    """The hospital refuses a task; the server learns only the ``code``."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class HeldBackError(PolicyError):
    """A reply holds something that may not leave; retrying does not help."""


class Policy:
    """Decides whether this hospital accepts a task.

    Parameters
    ----------
    state
        The site's state folder.
    config
        The federation of the site's own kit; tasks of any other are refused.
    site
        What the hospital allows; a path is a site file that is read again at every check.
    """

    def __init__(self, state: Path, config: FederationConfig, site: SiteConfig | Path) -> None:
        self._config = config
        self._digest = config.digest()
        self._site = site
        self._book = DecisionBook(state)

    def check(self, digest: str) -> None:
        """Return if the site may now do a task of the federation with this digest.

        Raises
        ------
        PolicyError
            It may not.
        """
        try:
            decisions = self._book.read()
            site = load_site_config(self._site) if isinstance(self._site, Path) else self._site
        except (DecisionsError, ConfigError) as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None
        if decisions.withdrawn is not None:
            raise PolicyError(
                ErrorCode.WITHDRAWN, f"withdrawn by {decisions.withdrawn.user}; fedvox-client approve ends it"
            )
        if decisions.paused is not None:
            raise PolicyError(ErrorCode.PAUSED, f"paused by {decisions.paused.user}; fedvox-client resume ends it")
        if site.paused:
            raise PolicyError(ErrorCode.PAUSED, "paused in the site file; set paused: false to go on")
        if digest != self._digest:
            raise PolicyError(
                ErrorCode.NOT_APPROVED,
                f"the server runs federation {digest[:12]}, but this kit is for {self._digest[:12]}",
            )
        if violations := site.privacy.violations(self._config):
            raise PolicyError(ErrorCode.PRIVACY_REQUIRED, "; ".join(violations))
        if violations := site.limits.violations(self._config):
            raise PolicyError(ErrorCode.OUTSIDE_LIMITS, f"outside the site file's limits: {'; '.join(violations)}")
        if decisions.approval(digest, automatic=False) is None:
            self._approve_automatically(digest, site)

    def _approve_automatically(self, digest: str, site: SiteConfig) -> None:
        if not site.limits.automatic_approval:
            raise PolicyError(ErrorCode.NOT_APPROVED, "not approved; run fedvox-client review, then approve")
        try:
            self._book.approve_automatically(self._config.name, digest)
        except (AuditError, OutputError, DecisionsError) as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


class TaskGuard:
    """Stands between server and site: checks the policy before a task, and records what leaves after it.

    Parameters
    ----------
    policy
        This hospital's policy.
    audit
        Log of tasks and replies, normally ``audit.jsonl`` in the site's state folder.
    """

    def __init__(self, policy: Policy, audit: AuditLog) -> None:
        self._policy = policy
        self._audit = audit

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
    """Make the guard of a site from the site file, decisions and audit log in its state folder."""
    return TaskGuard(Policy(state, config, state / SITE_FILE), AuditLog(state / AUDIT_FILE))


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
