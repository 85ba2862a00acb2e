"""What a hospital chooses for the de-identification of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from common.audit import AuditLog
from common.errors import FedvoxError

CHOICE_EVENT = "deidentification_chosen"
"""Event of the audit log: how files that arrive from now on are de-identified, or that they are not."""


class Reason(StrEnum):
    """Why an instance is refused."""

    DAMAGED = "damaged"
    KIND = "kind"
    BURNED_IN = "burned-in"
    SECONDARY_CAPTURE = "secondary-capture"
    ULTRASOUND = "ultrasound"
    DERIVED = "derived"
    OVERLAY = "overlay"
    IDENTIFIERS = "identifiers"


ALLOWABLE = frozenset({Reason.BURNED_IN, Reason.SECONDARY_CAPTURE, Reason.ULTRASOUND, Reason.DERIVED})
"""Reasons that a hospital may set aside, because only a person who looks at the pixels can judge them."""


class InstanceRefusedError(FedvoxError):
    """An instance cannot be de-identified, so that it must not be kept.

    The text continues "the instance ..."; it holds no value of the file.

    Attributes
    ----------
    reason
        Why, for programs.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason = reason
        super().__init__(text)


@dataclass(frozen=True)
class Choices:
    """Options of the profile.

    Attributes
    ----------
    dates
        ``shifted``: moved by a number of days that is constant for a patient and known to nobody; times stay.
        ``removed``: no dates and no times.
    device
        Whether the serial number of the scanner stays.
    allowed
        Kinds of risky pixels that are taken all the same, of ``ALLOWABLE``.
    """

    dates: Literal["shifted", "removed"] = "shifted"
    device: Literal["kept", "removed"] = "kept"
    allowed: frozenset[Reason] = field(default=frozenset())

    def __repr__(self) -> str:
        """Return the same text for the same choices in every process, so that it can be part of a name."""
        return f"Choices({self.dates}, {self.device}, {sorted(map(str, self.allowed))})"

    def __post_init__(self) -> None:
        if wrong := self.allowed - ALLOWABLE:
            raise ValueError(f"cannot be allowed: {', '.join(sorted(wrong))}")


def log_choice(audit: AuditLog, choices: Choices | None, **about: Any) -> None:
    """Write to the hospital's audit log how files will be de-identified, before the first of them arrives.

    Parameters
    ----------
    audit
        The log.
    choices
        The options; None if files stay as they are.
    about
        Further details, such as where the files come from: JSON values.

    Raises
    ------
    AuditError
        If the log is broken or cannot be written.
    """
    if choices is None:
        audit.append(CHOICE_EVENT, profile=None, **about)
        return
    audit.append(
        CHOICE_EVENT,
        profile="basic",
        dates=choices.dates,
        device=choices.device,
        allowed=sorted(choices.allowed),
        **about,
    )
