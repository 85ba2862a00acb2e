"""Kits: the folder that gives a server or a site its identity and its federation's address."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from common.certificates import AUTHORITY_FILE
from common.config.network import Address, FederationName, Port, SiteName, format_endpoint
from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.plan.base import Frozen, whole_number
from common.plan.describe_errors import describe_validation_error
from common.system.state_file import check_digest
from common.weights.digest import Digest

KIT_FILE = "kit.yaml"
AGREED_FILES = ("federation.yaml", "plan.json", AUTHORITY_FILE)
"""Files that are the same in all kits of a federation; the half of a site without a network has no authority."""
_REMEDY = "ask the coordinator for a new kit"
_AGAIN = "the coordinator has to run fedvox-server provision again, and send every site its new kit"
KIT_FORMAT: Literal[2] = 2


class Kit(Frozen):
    """Content of ``kit.yaml``; format 2 has a certificate for each site, format 1 had none.

    Attributes
    ----------
    federation
        Name of the federation.
    digest
        ``FederationConfig.digest()`` of the kit's ``federation.yaml``.
    address, port
        Address of the server.
    site
        Name of the site that the kit is for; None in the server's kit.
    files
        SHA-256 of the kit's other files that come from the federation file or the authority, by name.
    sha256
        SHA-256 of everything above.
    """

    format: Annotated[Literal[2], BeforeValidator(whole_number)] = KIT_FORMAT
    role: Literal["server", "site"]
    federation: FederationName
    digest: Digest
    address: Address
    port: Port
    site: SiteName | None = None
    files: dict[str, Digest] = Field(default_factory=dict)
    sha256: Digest | None = None

    @model_validator(mode="after")
    def _sites_have_names(self) -> Self:
        if (self.role == "site") != (self.site is not None):
            raise ValueError("site: must be given for role site, and only there")
        return self

    @property
    def endpoint(self) -> str:
        """Server address as ``host:port``, IPv6 in brackets."""
        return format_endpoint(self.address, self.port)

    def sealed(self) -> Kit:
        """Return the kit with its ``sha256``."""
        content = json.dumps(self.model_dump(mode="json", exclude={"sha256"}), sort_keys=True)
        return self.model_copy(update={"sha256": hashlib.sha256(content.encode()).hexdigest()})


def check_kit_files(folder: Path, kit: Kit) -> None:
    """Check the files of a kit that are there; whoever needs one that is missing says so.

    Raises
    ------
    ConfigError
        The kit does not state what a file has to be.
    DamagedFileError
        A file is not the one that the coordinator put into the kit.
    """
    for name in AGREED_FILES:
        if (folder / name).exists() and name not in kit.files:
            raise ConfigError(f"{folder / KIT_FILE}: does not state the SHA-256 of {name}; {_AGAIN}")
    for name, digest in kit.files.items():
        if (folder / name).exists():
            check_digest(folder / name, digest, f"it has to be as {KIT_FILE} says: {_REMEDY}")


def read_kit(folder: Path, role: Literal["server", "site"] | None = None) -> Kit:
    """Read and check a kit's ``kit.yaml``.

    Parameters
    ----------
    folder
        The kit.
    role
        Role that the kit must be for; None accepts both.

    Raises
    ------
    ConfigError
        If the folder is not a kit, or the kit is damaged, has another format, or is for the other role.
    """
    file = folder / KIT_FILE
    try:
        content = read_yaml(file)
        _check_format(folder, content)
        kit = Kit.model_validate(content)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: is not a kit (it has no {KIT_FILE}); give the folder that fedvox-server provision wrote"
        ) from None
    except ValidationError as error:
        problem = describe_validation_error(error, Kit, str(file)).partition("\n")[0]
        raise ConfigError(f"{problem}; ask the coordinator for a new kit") from None
    if kit.sha256 is None:
        raise ConfigError(
            f"{file}: states no SHA-256: it comes from an earlier version of Fedvox, or lines were removed; {_AGAIN}"
        )
    if kit != kit.sealed():
        raise ConfigError(f"{file}: was changed: its SHA-256 is not the one that it states; {_REMEDY}")
    if role is not None and kit.role != role:
        command = "fedvox-client start" if kit.role == "site" else "fedvox-server start"
        raise ConfigError(f"{folder}: is a {kit.role} kit; use it with {command}")
    return kit


def _check_format(folder: Path, content: object) -> None:
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(found, int) or found == KIT_FORMAT:
        return
    if found > KIT_FORMAT:
        raise ConfigError(f"{folder}: has a newer kit format; install the version of Fedvox that it was made with")
    if content.get("role") == "server":
        raise ConfigError(
            f"{folder}: has an older kit format; run fedvox-server provision with a new, empty --out, and send every "
            "site its new kit"
        )
    raise ConfigError(f"{folder}: has an older kit format; ask the coordinator for a new kit")
