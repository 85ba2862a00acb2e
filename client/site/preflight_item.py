"""One line of preflight."""

from __future__ import annotations

from dataclasses import dataclass

from client.site.gpu_probe import Severity


@dataclass(frozen=True)
class Item:
    """One thing that was checked. ``text`` says what was found and, if it is not good, what to do."""

    name: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.name + ':':<13} {self.text}"
