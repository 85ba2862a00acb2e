"""A site's kit for tests: one authority, a server's certificate, and any number of sites."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config.kit import Kit
from server.provisioning.certificate_authority import Authority
from tests.kits import seal_kit
from tests.mutual_tls import write_server, write_site

FEDERATION = """
name: tiny
rounds: 3
seed: 1
labels: {{1: ball}}
channels: [t1]
strategy: {{min_sites: 2}}
network: {{address: {address}, port: {port}, sites: [north, south], heartbeat_seconds: 1}}
"""


@dataclass(frozen=True)
class Kits:
    """The authority's folder; ``server`` is what the server's TLS needs."""

    folder: Path
    authority: Authority

    @classmethod
    def make(cls, folder: Path) -> Kits:
        folder.mkdir(parents=True, exist_ok=True)
        authority = Authority.create("tiny")
        write_server(folder / "server", authority)
        return cls(folder, authority)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def site(self, folder: Path, port: int, site: str = "north", address: str = "127.0.0.1") -> Path:
        """A site's whole kit, for a gateway at a port."""
        folder.mkdir(parents=True)
        write_site(folder, self.authority, site)
        (folder / "federation.yaml").write_text(FEDERATION.format(address=address, port=port))
        kit = Kit(role="site", federation="tiny", digest="0" * 64, address=address, port=port, site=site)
        seal_kit(folder, kit)
        return folder
