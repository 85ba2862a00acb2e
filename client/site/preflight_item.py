"""One line of the preflight report."""

from __future__ import annotations

from dataclasses import dataclass

from client.site.gpu_probe import Severity


@dataclass(frozen=True)
class Item:
    """Result of one check. ``text`` says what was found and, if there is a problem, what to do."""

    name: str
    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity:<8} {self.name + ':':<13} {self.text}"
