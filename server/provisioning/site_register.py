"""``authority/sites.json``: each site's certificate, and the revoked keys and certificates."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from pydantic import Field

from common.certificates import CertificateError, certificate_pem, fingerprint
from common.config.network import SiteName
from common.errors import OutputError
from common.plan.base import Frozen
from common.system.files import write_atomically
from server.provisioning.certificate_authority import AuthorityError

REGISTER_FILE = "sites.json"
REGISTER_FORMAT: Literal[2] = 2
MadeBy = Literal["coordinator", "site"]
Serial = Annotated[str, Field(pattern=r"^[0-9a-f]{1,40}$")]


class SiteRecord(Frozen):
    """A site's entry in the register.

    Attributes
    ----------
    certificate
        The newest certificate as PEM.
    serials
        The serial numbers of all certificates for its key, in hexadecimal.
    made_by
        Who made the key.
    added
        When the key was added.
    revoked
        When the key was revoked, or None.
    listed
        Whether the federation file lists the site.
    """

    certificate: str
    serials: tuple[Serial, ...]
    made_by: MadeBy
    added: str
    revoked: str | None = None
    listed: bool = True

    @property
    def x509(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def key(self) -> str:
        """The fingerprint of its key."""
        return fingerprint(self.x509)


class Register(Frozen):
    """The certificates of all sites.

    Attributes
    ----------
    revoked_keys
        Fingerprints of keys that no site may use again.
    revoked_serials
        Certificates that were revoked or whose key was replaced: serial number in hexadecimal -> time.
    """

    format: Literal[2] = REGISTER_FORMAT
    federation: str
    sites: dict[SiteName, SiteRecord] = Field(default_factory=dict)
    revoked_keys: tuple[str, ...] = ()
    revoked_serials: dict[Serial, str] = Field(default_factory=dict)

    def owner_of(self, key: str) -> str | None:
        """Return the site that owns the key with this fingerprint, or None."""
        return next((site for site, record in self.sites.items() if record.key == key), None)

    def with_certificate(self, site: str, certificate: x509.Certificate, made_by: MadeBy) -> Register:
        """Return the register with a site's new certificate; if the key changed, the old key is revoked."""
        before, serial = self.sites.get(site), f"{certificate.serial_number:x}"
        text = certificate_pem(certificate).decode()
        if before is not None and before.key == fingerprint(certificate):
            record = before.model_copy(update={"certificate": text, "serials": (*before.serials, serial)})
            return self._with(site, record)
        changed = self if before is None else self._without_key(before, _now())
        return changed._with(site, SiteRecord(certificate=text, serials=(serial,), made_by=made_by, added=_now()))

    def with_revoked(self, site: str) -> Register:
        """Return the register with a site's key and all certificates for it revoked."""
        now = _now()
        record = self.sites[site]
        if record.revoked is not None:
            return self
        return self._without_key(record, now)._with(site, record.model_copy(update={"revoked": now}))

    def with_listed(self, sites: Collection[str]) -> Register:
        """Return the register for a federation file that lists these sites."""
        records = {
            name: record.model_copy(update={"listed": name in sites}) if record.listed != (name in sites) else record
            for name, record in self.sites.items()
        }
        return self.model_copy(update={"sites": records})

    def admitted(self) -> dict[str, SiteRecord]:
        """Return the records of the admitted sites."""
        return {name: record for name, record in self.sites.items() if record.listed and record.revoked is None}

    def void_certificates(self) -> dict[int, datetime]:
        """Return all certificates for the revocation list: serial number -> time of revocation.

        Includes those of sites that the federation file does not list, until it lists them again.
        """
        unlisted = {
            serial: record.added
            for record in self.sites.values()
            if not record.listed and record.revoked is None
            for serial in record.serials
        }
        return {
            int(serial, 16): datetime.fromisoformat(when) for serial, when in (unlisted | self.revoked_serials).items()
        }

    def _with(self, site: str, record: SiteRecord) -> Register:
        return self.model_copy(update={"sites": self.sites | {site: record}})

    def _without_key(self, record: SiteRecord, now: str) -> Register:
        keys = self.revoked_keys if record.key in self.revoked_keys else (*self.revoked_keys, record.key)
        serials = dict.fromkeys(record.serials, now) | self.revoked_serials
        return self.model_copy(update={"revoked_keys": keys, "revoked_serials": serials})


def read_register(out: Path) -> Register:
    """Read the register in the folder of all kits.

    Raises
    ------
    OutputError
        The folder holds no kits, or kits of an older format.
    AuthorityError
        The register is damaged.
    """
    file = out / "authority" / REGISTER_FILE
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content, dict) and content.get("format") == 1:
            raise OutputError(
                f"{out}: has an older kit format, without site certificates; run fedvox-server provision with a new, "
                "empty --out, and send every site its new kit"
            )
        register = Register.model_validate(content)
        for record in register.sites.values():
            _ = record.key
    except FileNotFoundError:
        raise OutputError(f"{out}: holds no kits; give the --out folder of fedvox-server provision") from None
    except (OSError, ValueError, CertificateError):
        raise AuthorityError(f"{file}: is damaged; restore it from a backup") from None
    return register


def write_register(authority: Path, register: Register) -> None:
    """Write the register to the authority's folder.

    Raises
    ------
    OutputError
        The register cannot be written.
    """
    write_atomically(authority / REGISTER_FILE, json.dumps(register.model_dump(mode="json"), indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
