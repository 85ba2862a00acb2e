"""What provisioning did, in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ProvisionReport:
    """What was done: a word per site (``new``, ``changed``, ``unchanged``, ``revoked``), and notes."""

    out: Path
    sites: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Format the report as a few lines of text."""
        width = max(map(len, self.sites), default=0)
        lines = [f"  {name:<{width}}  {what:<9}  {self.out / 'sites' / name}" for name, what in self.sites.items()]
        return "\n".join([f"server: {self.out / 'server'}", "sites:", *lines, *self.notes])
