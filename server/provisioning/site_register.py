"""``authority/sites.json``: which site has which certificate, and which keys and certificates are void."""

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
    """What the coordinator remembers of a site.

    Attributes
    ----------
    certificate
        the newest, as PEM.
    serials
        of all certificates that its key was given, in hexadecimal digits.
    made_by
        who has made the key.
    added
        when the key was.
    revoked
        when it was, if it was.
    listed
        whether the federation file names the site.
    """

    certificate: str
    serials: tuple[Serial, ...]
    made_by: MadeBy
    added: str
    revoked: str | None = None
    listed: bool = True

    @property
    def x509(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def key(self) -> str:
        """The fingerprint of its key."""
        return fingerprint(self.x509)


class Register(Frozen):
    """Who has which certificate.

    Attributes
    ----------
    revoked_keys
        fingerprints of keys that are never let in again, whoever shows them.
    revoked_serials
        certificates that were revoked, or whose key was replaced, and when; serials as in the records.
    """

    format: Literal[2] = REGISTER_FORMAT
    federation: str
    sites: dict[SiteName, SiteRecord] = Field(default_factory=dict)
    revoked_keys: tuple[str, ...] = ()
    revoked_serials: dict[Serial, str] = Field(default_factory=dict)

    def owner_of(self, key: str) -> str | None:
        """The site that a key, given by its fingerprint, belongs to."""
        return next((site for site, record in self.sites.items() if record.key == key), None)

    def with_certificate(self, site: str, certificate: x509.Certificate, made_by: MadeBy) -> Register:
        """The register with a site's new certificate; if its key is another one than before, that one is void."""
        before, serial = self.sites.get(site), f"{certificate.serial_number:x}"
        text = certificate_pem(certificate).decode()
        if before is not None and before.key == fingerprint(certificate):
            record = before.model_copy(update={"certificate": text, "serials": (*before.serials, serial)})
            return self._with(site, record)
        changed = self if before is None else self._without_key(before, _now())
        return changed._with(site, SiteRecord(certificate=text, serials=(serial,), made_by=made_by, added=_now()))

    def with_revoked(self, site: str) -> Register:
        """The register after a site's key was revoked, with all certificates for it."""
        now = _now()
        record = self.sites[site]
        if record.revoked is not None:
            return self
        return self._without_key(record, now)._with(site, record.model_copy(update={"revoked": now}))

    def with_listed(self, sites: Collection[str]) -> Register:
        """The register for a federation file that names these sites."""
        records = {
            name: record.model_copy(update={"listed": name in sites}) if record.listed != (name in sites) else record
            for name, record in self.sites.items()
        }
        return self.model_copy(update={"sites": records})

    def admitted(self) -> dict[str, SiteRecord]:
        """The sites that are let in."""
        return {name: record for name, record in self.sites.items() if record.listed and record.revoked is None}

    def void_certificates(self) -> dict[int, datetime]:
        """Serial number -> since when, of all certificates that no site may use now, as revocation lists have them.

        Those of a site that the federation file does not name are among them; they count again when it does.
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
    """The register in the folder of all kits.

    Raises
    ------
    OutputError
        the folder holds no kits, or kits of an earlier form. AuthorityError: the register is damaged.
    """
    file = out / "authority" / REGISTER_FILE
    try:
        content = json.loads(file.read_bytes())
        if isinstance(content, dict) and content.get("format") == 1:
            raise OutputError(
                f"{out}: holds kits of an earlier form, whose sites have no certificates; run fedvox-server provision "
                "with a new, empty --out, and send every site its new kit"
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
    """Writes the register into the folder of the authority.

    Raises
    ------
    OutputError
        it cannot be written.
    """
    write_atomically(authority / REGISTER_FILE, json.dumps(register.model_dump(mode="json"), indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
