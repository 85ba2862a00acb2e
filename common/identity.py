"""Request signatures: a site authenticates its requests to the gateway with its key.

The signature covers the method, the path, the time, the SHA-256 of the body, and the few headers that change the
meaning of a request. The gateway accepts each signed text once and only within ``WINDOW_SECONDS`` of its own clock.
The time has nanosecond resolution, so a client never signs the same text twice.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

WINDOW_SECONDS = 300.0
SITE_HEADER = "fedvox-site"
TIME_HEADER = "fedvox-time"
BODY_HEADER = "fedvox-body-sha256"
SIGNATURE_HEADER = "fedvox-signature"
SIGNED_HEADERS = ("upload-offset", "upload-length", "range")
PROBE_PATH = f"/models/{'0' * 64}"
"""What a site asks for before it joins: a model that does not exist, so a server that accepts the site says 404."""
_HASH = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True)
class Claim:
    """Unverified identity claim of a request.

    Attributes
    ----------
    time_ns
        Nanoseconds since the epoch.
    body
        SHA-256 of the body in hexadecimal digits; for an upload, the SHA-256 of the whole file, of which the body may
        be only a part.
    """

    site: str
    time_ns: int
    body: str
    signature: bytes


def sign(
    key: ec.EllipticCurvePrivateKey, site: str, method: str, path: str, body: str, headers: Mapping[str, str]
) -> dict[str, str]:
    """Return the headers that authenticate a request; ``headers`` are its other headers, in lower case."""
    now = time.time_ns()
    text = signed_text(site, method, path, now, body, headers)
    return {
        SITE_HEADER: site,
        TIME_HEADER: str(now),
        BODY_HEADER: body,
        SIGNATURE_HEADER: base64.b64encode(key.sign(text, _HASH)).decode(),
    }


def claim_of(headers: Mapping[str, str]) -> Claim | None:
    """Parse the claim in the headers of a request; None if a header is missing or malformed."""
    try:
        site, stamp, body = headers[SITE_HEADER], headers[TIME_HEADER], headers[BODY_HEADER]
        signature = base64.b64decode(headers[SIGNATURE_HEADER], validate=True)
    except (KeyError, ValueError):
        return None
    if len(stamp) > 20 or not (stamp.isascii() and stamp.isdecimal()):
        return None
    return Claim(site, int(stamp), body, signature)


def is_signed_by(
    key: ec.EllipticCurvePublicKey, claim: Claim, method: str, path: str, headers: Mapping[str, str]
) -> bool:
    """Return whether this key signed this request."""
    try:
        text = signed_text(claim.site, method, path, claim.time_ns, claim.body, headers)
        key.verify(claim.signature, text, _HASH)
    except InvalidSignature:
        return False
    return True


def signed_text(site: str, method: str, path: str, time_ns: int, body: str, headers: Mapping[str, str]) -> bytes:
    """Return the text to sign; it also identifies a request, so that replays are detected."""
    about = [f"{name}:{headers.get(name, '')}" for name in SIGNED_HEADERS]
    return "\n".join(["fedvox-request-1", site, method, path, str(time_ns), body, *about]).encode()
