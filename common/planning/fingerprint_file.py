"""The file in which a site shares its fingerprint: for one federation, and signed with the site's key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AfterValidator, Field, ValidationError, model_validator

from common.config.federation import FederationConfig
from common.config.network import FederationName, SiteName
from common.errors import ConfigError
from common.plan.base import Frozen, Labels, Name
from common.plan.describe_errors import describe_validation_error
from common.planning.shared_fingerprint import SharedFingerprint

LARGEST_FILE_BYTES = 2**22
_HASH = ec.ECDSA(hashes.SHA384())


def _check_time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None or time.astimezone(UTC).isoformat(timespec="seconds") != text:
        raise ValueError("must be a time in UTC with whole seconds, as in 2026-11-29T21:44:00+00:00")
    return text


class FingerprintFile(Frozen):
    """A site's fingerprint, with what it was made for.

    Attributes
    ----------
    federation, channels, labels, modality
        As in the federation file that it was made for.
    site
        Name of the site.
    made_at
        When it was made, by the site's clock: ISO 8601, whole seconds, UTC.
    fingerprint
        What the site shares.
    signature
        By the site's key over everything above (ECDSA, SHA-384), in hexadecimal digits; empty before it is signed.
    """

    format: Literal[1] = 1
    federation: FederationName
    site: SiteName
    made_at: Annotated[str, AfterValidator(_check_time)]
    channels: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    labels: Labels
    modality: Literal["CT", "MR", "other"]
    fingerprint: SharedFingerprint
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{0,300}$")] = ""

    @model_validator(mode="after")
    def _counts_what_it_names(self) -> Self:
        found = self.fingerprint
        for name, items, count in (
            ("channels", self.channels, found.channels),
            ("labels", self.labels, len(found.labels_found)),
        ):
            if len(items) != count:
                raise ValueError(f"names {len(items)} {name}, and the fingerprint has {count}")
        if found.intensities_hu and self.modality != "CT":
            raise ValueError("intensities_hu belongs to modality CT, and to no other")
        return self

    def signed(self, key: ec.EllipticCurvePrivateKey) -> FingerprintFile:
        """Return the file with the signature of a site's key."""
        return self.model_copy(update={"signature": key.sign(self._text(), _HASH).hex()})

    def is_signed_by(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Return whether a site's key signed exactly this."""
        try:
            key.verify(bytes.fromhex(self.signature), self._text(), _HASH)
        except (InvalidSignature, ValueError):
            return False
        return True

    def differences(self, config: FederationConfig) -> list[str]:
        """List the keys of a federation file that this was not made for."""
        made_for = (self.federation, self.channels, self.labels, self.modality)
        asked = (config.name, config.channels, config.label_names, config.modality)
        keys = ("name", "channels", "labels", "modality")
        return [key for key, own, other in zip(keys, made_for, asked, strict=True) if own != other]

    def as_json(self) -> str:
        """Return the file's text."""
        return self.model_dump_json(indent=1) + "\n"

    def _text(self) -> bytes:
        content = self.model_dump(mode="json", exclude={"signature"})
        return b"fedvox-fingerprint-1\n" + json.dumps(content, sort_keys=True).encode()


def read_fingerprint(path: Path) -> FingerprintFile:
    """Read a site's fingerprint; its signature is not checked.

    Raises
    ------
    ConfigError
        The file is missing, is not a fingerprint, or contradicts itself.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: is not a fingerprint: it has more than {LARGEST_FILE_BYTES:,} bytes")
        return FingerprintFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; give the file that fedvox-client fingerprint wrote"
        ) from None
    except ValidationError as error:
        problem = describe_validation_error(error, FingerprintFile, str(path)).partition("\n")[0]
        raise ConfigError(f"{problem}; ask the site to make it again with fedvox-client fingerprint") from None
