"""A site's kit without keys, and a person who approves it."""

from __future__ import annotations

import json
from pathlib import Path

from client.consent.decisions import Approval, DecisionBook
from client.consent.site_config import SITE_FILE, load_site_config
from client.consent.terms import HospitalLimits, terms_of
from common.config.federation import FederationConfig, as_json
from common.config.kit import AGREED_FILES, KIT_FILE, Kit, read_kit
from common.plan.plan import Plan
from common.system.state_file import digest_of_file


def write_kit(folder: Path, config: FederationConfig, plan: Plan, site: str = "north") -> Path:
    """Writes the files of a kit that say what it wants."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.yaml").write_text(config.resolved(), encoding="utf-8")
    (folder / "plan.json").write_text(as_json(plan), encoding="utf-8")
    seal_kit(
        folder,
        Kit(
            role="site",
            federation=config.name,
            digest=config.digest(),
            address="coordinator.example",
            port=9443,
            site=site,
        ),
    )
    return folder


def seal_kit(folder: Path, kit: Kit) -> None:
    """Writes a ``kit.yaml`` that states what the kit's other files are, as ``fedvox-server provision`` does."""
    _write(folder, with_files(folder, kit))


def with_files(folder: Path, kit: Kit) -> Kit:
    """The kit, with what its files are that are there."""
    files = {name: digest_of_file(folder / name) for name in AGREED_FILES if (folder / name).exists()}
    return kit.model_copy(update={"files": files})


def change_kit(folder: Path, **values: object) -> None:
    """Changes values of a ``kit.yaml`` as a coordinator can, who also seals it."""
    _write(folder, read_kit(folder).model_copy(update=values))


def _write(folder: Path, kit: Kit) -> None:
    (folder / KIT_FILE).write_text(kit.sealed().model_dump_json(), encoding="utf-8")


def approve(kit: Path, state: Path, consent: Path, user: str = "Dr. A") -> Approval:
    """As ``fedvox-client approve``."""
    limits = HospitalLimits.of(load_site_config(state / SITE_FILE))
    name = json.loads((kit / "kit.yaml").read_text(encoding="utf-8"))["federation"]
    return DecisionBook(state, consent).approve(name, terms_of(kit), limits, user)
