"""What this hospital allows: every task is checked before it begins, every reply is written down before it leaves.

Decisions are read anew for every task, so that a pause or a withdrawal holds from the next one on. Whatever cannot be
read, and whatever is in doubt, is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from client.approvals import AUDIT_FILE, DecisionBook, DecisionsError
from client.consent import fields_that_leave
from common.audit import AuditError, AuditLog
from common.config import FederationConfig
from common.errors import ConfigError, FedvoxError, OutputError
from common.manifest import manifest_of
from common.messages import ErrorCode
from common.protocol import MAX_LABELS
from common.site_config import SITE_FILE, SiteConfig, load_site_config

MAX_TEXT = 200


class PolicyError(FedvoxError):
    """This hospital does not do what was asked; the server learns the ``code`` alone."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        self.code = code
        super().__init__(text)


class Policy:
    """Decides whether this hospital does a task.

    Args:
        state: the site's state folder.
        config: the federation of the site's own kit; tasks of any other are refused.
        site: what the hospital allows; a path is a site file that is read anew at every check.
    """

    def __init__(self, state: Path, config: FederationConfig, site: SiteConfig | Path) -> None:
        self._config = config
        self._digest = config.digest()
        self._site = site
        self._book = DecisionBook(state)

    def check(self, digest: str) -> None:
        """Returns if a task of the federation with this digest may be done now.

        Raises:
            PolicyError: it may not.
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

    Args:
        policy: of this hospital.
        audit: where tasks and replies are written down; by rule ``audit.jsonl`` in the site's state folder.
    """

    def __init__(self, policy: Policy, audit: AuditLog) -> None:
        self._policy = policy
        self._audit = audit

    def check(self, digest: str) -> None:
        """Returns if the task may be done, and writes it down either way.

        Raises:
            PolicyError: it may not, or it could not be written down.
        """
        try:
            self._policy.check(digest)
        except PolicyError as error:
            self._log("task_refused", digest=digest[:MAX_TEXT], code=_code_word(error.code))
            raise
        self._log("task_accepted", digest=digest)

    def record(self, kind: str, task: Message, reply: Message) -> None:
        """Writes down exactly what a reply holds; raising keeps it from leaving.

        Raises:
            PolicyError: the log cannot be written, or the reply holds something that may not leave.
        """
        about: dict[str, Any] = {"kind": kind, **_round_of(task)}
        if reply.has_error():
            word, reason = _code_word(reply.error.code), reply.error.reason or ""
            if not reason.isidentifier() or len(reason) > MAX_TEXT:
                self._log("held_back", **about, unlisted=["error text"])
                raise PolicyError(ErrorCode.REFUSED_BY_SITE, "an error with free text was about to leave")
            self._log("sent", **about, bytes=0, error=word, reason=reason)
            return
        if unlisted := _unlisted(reply.content):
            self._log("held_back", **about, unlisted=unlisted)
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, f"about to leave, but on no list: {', '.join(unlisted)}")
        manifest = manifest_of(reply.content)
        epsilon = manifest["fields"].get("numbers", {}).get("epsilon")
        self._log("sent", **about, **manifest, epsilon=epsilon)

    def _log(self, event: str, **details: Any) -> None:
        try:
            self._audit.append(event, **details)
        except AuditError as error:
            raise PolicyError(ErrorCode.REFUSED_BY_SITE, str(error)) from None


def open_guard(state: Path, config: FederationConfig) -> TaskGuard:
    """The guard of a site that keeps site file, decisions and audit log in its state folder."""
    return TaskGuard(Policy(state, config, state / SITE_FILE), AuditLog(state / AUDIT_FILE))


def _round_of(task: Message) -> dict[str, Any]:
    """Run and round as the server wrote them, if it did."""
    found: dict[str, Any] = {}
    for name in ("hello", "task", "wait"):
        record = task.content.config_records.get(name) if task.has_content() else None
        for key, kind in (("run", str), ("round", int)):
            value = record.get(key) if record is not None else None
            if isinstance(value, kind):
                found[key] = value[:MAX_TEXT] if isinstance(value, str) else value
    return found


def _unlisted(records: RecordDict) -> list[str]:
    """Whatever is in a reply and not on the list that the consent document shows."""
    names = {field.name for field in fields_that_leave()} | {"format", "dice_labels", "dice_values"}
    found = []
    for record_name, record in records.items():
        if record_name == "update" and record_name in records.array_records:
            found += [f"{record_name}.{key}" for key in record if not key.isdecimal()]
        elif record_name not in {"info", "progress", "identity", "numbers"} or record_name in records.array_records:
            found.append(record_name)
        else:
            found += [f"{record_name}.{key}" for key, value in record.items() if key not in names or _is_long(value)]
    return found


def _is_long(value: object) -> bool:
    """Whether a value has room for more than a number, a short text, or one number per label."""
    if isinstance(value, list):
        return len(value) > MAX_LABELS or not all(isinstance(item, int | float) for item in value)
    return isinstance(value, bytes) or (isinstance(value, str) and len(value) > MAX_TEXT)


def _code_word(code: int) -> str:
    try:
        return ErrorCode(code).name.lower().replace("_", "-")
    except ValueError:
        return f"flower-error-{code}"
