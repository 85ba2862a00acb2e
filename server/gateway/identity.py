"""Authenticates requests: the sites admitted now, and their signatures.

A site is admitted while its certificate is in the kit as ``sites/NAME.crt`` and not listed in ``ca.crl``. Both files
are checked on every request, so revocation takes effect at once.

Each signed text is accepted once. Replays are detected by the text, not by the signature, because ECDSA signatures are
malleable: anyone can derive a second valid one. Accepted texts are kept in memory only. After a restart of the gateway,
TLS alone prevents the replay of recent requests.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import (
    AUTHORITY_FILE,
    REVOCATIONS_FILE,
    CertificateError,
    admitted_certificate,
    key_of,
    load_certificate,
    public_pem,
)
from common.config.network import is_site_name
from common.identity import WINDOW_SECONDS, Claim, claim_of, is_signed_by, signed_text
from server.gateway.refusals import RefusedError

CLIENT_NAME_HEADER = "fedvox-client-name"
"""Header with the name in the client certificate, set by a proxy that terminates TLS."""
_Stamp = tuple[int, int, int]
log = logging.getLogger("fedvox.gateway")


@dataclass(frozen=True)
class Site:
    """A site that is admitted.

    Attributes
    ----------
    public_key
        The key as PEM, as registered with Flower.
    serial, begin, end
        The certificate's serial number and validity period.
    """

    name: str
    key: ec.EllipticCurvePublicKey
    public_key: bytes
    serial: int
    begin: datetime
    end: datetime


class Sites:
    """The sites in a server's kit; rereads a file when it changes.

    Parameters
    ----------
    kit
        The folder with ``ca.crt``, ``ca.crl`` and ``sites/NAME.crt``.
    """

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._known: dict[str, tuple[_Stamp, Site | None]] = {}
        self._revoked: frozenset[int] = frozenset()
        self._revoked_stamp: _Stamp | None = None

    def find(self, name: str) -> Site | None:
        """Return the site of a name, or None if it is not admitted now."""
        if not is_site_name(name):
            return None
        file = self._kit / "sites" / f"{name}.crt"
        stamp = _stamp(file)
        if stamp is None:
            self._known.pop(name, None)
            return None
        if name not in self._known or self._known[name][0] != stamp:
            self._known[name] = (stamp, self._read(name))
        site = self._known[name][1]
        if site is None or not site.begin <= datetime.now(UTC) < site.end:
            return None
        return None if site.serial in self._revoked_serials() else site

    def is_admitted(self, site: Site) -> bool:
        """Return whether an admitted site still is, with the same certificate."""
        now = self.find(site.name)
        return now is not None and now.serial == site.serial

    def _read(self, name: str) -> Site | None:
        try:
            certificate = admitted_certificate(self._kit, name)
            key = key_of(certificate)
        except CertificateError as error:
            log.warning("%s is not admitted: %s", name, error)
            return None
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return Site(name, key, public_pem(key), certificate.serial_number, begin, end)

    def _revoked_serials(self) -> frozenset[int]:
        file = self._kit / REVOCATIONS_FILE
        stamp = _stamp(file)
        if stamp is not None and stamp != self._revoked_stamp:
            self._revoked_stamp = stamp
            try:
                found = x509.load_pem_x509_crl(file.read_bytes())
                if not found.is_signature_valid(key_of(load_certificate(self._kit / AUTHORITY_FILE))):
                    raise ValueError("another authority signed it")
                self._revoked = frozenset(entry.serial_number for entry in found)
            except (OSError, ValueError, CertificateError) as error:
                # Certificates revoked by the last good list stay revoked.
                log.warning("%s: cannot be used: %s; run fedvox-server provision again", file, error)
        return self._revoked


class Signatures:
    """Verifies requests' signatures and rejects replays.

    Parameters
    ----------
    sites
        The sites that are admitted.
    most_texts
        The most signed texts remembered for a site; further requests are refused until some expire.
    are_names_given
        Whether a proxy terminates TLS, so requests carry the name in the client certificate.
    """

    def __init__(self, sites: Sites, most_texts: int, are_names_given: bool) -> None:
        self._sites = sites
        self._most_texts = most_texts
        self._are_names_given = are_names_given
        self._accepted: dict[str, _AcceptedTexts] = {}

    def prove(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[Site, Claim]:
        """Return the site that signed a request, and its claim; the body is not verified yet.

        Raises
        ------
        UnprovenError
            The request cannot be authenticated.
        UntimelyError
            The request is authentic, but outside the time window, replayed, or one too many.
        """
        claim = claim_of(headers)
        site = None if claim is None else self._sites.find(claim.site)
        if claim is None:
            raise UnprovenError("signature")
        if site is None:
            raise UnprovenError("unknown-site")
        if self._are_names_given and headers.get(CLIENT_NAME_HEADER) != site.name:
            raise UnprovenError("certificate")
        if not is_signed_by(site.key, claim, method, path, headers):
            raise UnprovenError("signature")
        now, sent = time.time(), claim.time_ns / 1e9
        if abs(now - sent) > WINDOW_SECONDS:
            raise UntimelyError(401, "clock", site.name)
        text = signed_text(claim.site, method, path, claim.time_ns, claim.body, headers)
        accepted = self._accepted.setdefault(site.name, _AcceptedTexts())
        accepted.forget_before(now)
        if len(accepted) >= self._most_texts:
            raise UntimelyError(429, "requests", site.name)
        if not accepted.add(text, sent + WINDOW_SECONDS):
            raise UntimelyError(401, "replayed", site.name)
        return site, claim


class UnprovenError(RefusedError):
    """A request that cannot be authenticated."""

    def __init__(self, reason: str) -> None:
        super().__init__(401, reason)


class UntimelyError(RefusedError):
    """An authentic request that is refused for its time, as a replay, or for its site's quota.

    Attributes
    ----------
    site
        The site's name.
    """

    def __init__(self, status: int, reason: str, site: str) -> None:
        super().__init__(status, reason)
        self.site = site


class _AcceptedTexts:
    """Digests of accepted texts, kept until the time window alone refuses them."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._by_end: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, text: bytes, end: float) -> bool:
        """Remember a text until ``end`` (seconds since the epoch); return whether it is new."""
        digest = hashlib.sha256(text).digest()
        if digest in self._digests:
            return False
        self._digests.add(digest)
        heapq.heappush(self._by_end, (end, digest))
        return True

    def forget_before(self, now: float) -> None:
        """Forget expired texts."""
        while self._by_end and self._by_end[0][0] < now:
            self._digests.discard(heapq.heappop(self._by_end)[1])


def _stamp(file: Path) -> _Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
