"""Signing in through an OpenID Connect provider (authorization code with PKCE), for those whom a file names.

``authlib`` asks for the token and ``joserfc`` checks its signature; they are optional dependencies (``oidc``).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import importlib.util
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit

import httpx
from httpx import HTTPError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.yaml_file import read_yaml
from common.errors import ConfigError, FedvoxError
from common.plan.describe_errors import describe_validation_error
from common.web.visits import Role

BEGIN, CALLBACK = "/openid", "/openid/callback"
PENDING_SECONDS = 600.0
"""How long somebody may take at the provider."""
MOST_USED = 1024
_KNOWN_SECONDS = 600.0
"""How long the provider's addresses are kept."""
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ALGORITHMS = ["RS256", "PS256", "ES256", "ES384"]
_SKEW_SECONDS = 60
_TIMEOUT_SECONDS = 10.0
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(default_factory=list)]


class OpenIdError(FedvoxError):
    """Somebody could not be signed in through the provider."""


class OpenIdSettings(BaseModel):
    """The file of ``--oidc``.

    Attributes
    ----------
    issuer
        The provider's address; https, or on this machine.
    secret_file
        File with the client's secret, from the folder of this file; none for a public client.
    claim
        What of the ID token names a person: ``sub``, or ``email`` if the provider has verified it.
    act, look
        Who may act, and who may look, by that claim.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    client_id: str
    secret_file: Path | None = None
    claim: Literal["sub", "email"] = "sub"
    act: Names
    look: Names


def read_settings(file: Path) -> OpenIdSettings:
    """Read the file of ``--oidc``.

    Raises
    ------
    ConfigError
        It cannot be used, or what it needs is not installed.
    """
    if importlib.util.find_spec("authlib") is None or importlib.util.find_spec("joserfc") is None:
        raise ConfigError("--oidc: the packages for it are not installed; run pip install 'fedvox[oidc]'")
    try:
        settings = OpenIdSettings.model_validate(read_yaml(file))
    except FileNotFoundError:
        raise ConfigError(f"{file}: does not exist; see deploy/docs/pages.md") from None
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, OpenIdSettings, str(file))) from None
    if not _is_private(settings.issuer):
        raise ConfigError(f"{file}: issuer: begins with https:// unless it is on this machine")
    if settings.secret_file is not None:
        settings = settings.model_copy(update={"secret_file": file.parent / settings.secret_file})
    return settings


class OpenId:
    """Signs people in through one provider.

    State, nonce and verifier follow from a secret in a cookie of the browser that begins. So nothing is kept for those
    who begin, and whoever begins often disturbs nobody.

    Parameters
    ----------
    settings
        The provider, and whom it may sign in.

    Raises
    ------
    ConfigError
        The file with the secret cannot be used.
    """

    def __init__(self, settings: OpenIdSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._secret = None if settings.secret_file is None else _read_secret(settings.secret_file)
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._used: dict[str, None] = {}
        self._known: tuple[float, Mapping[str, str]] | None = None

    def begin(self, callback: str) -> tuple[str, str]:
        """Return the provider's address for signing in, and a secret for a cookie of the same browser.

        Parameters
        ----------
        callback
            Our own address, to which the provider sends the browser back.
        """
        secret = f"{self._clock():.0f}.{secrets.token_urlsafe(32)}"
        challenge = hashlib.sha256(self._derived("verifier", secret).encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": callback,
            "scope": "openid email" if self._settings.claim == "email" else "openid",
            "state": self._derived("state", secret),
            "nonce": self._derived("nonce", secret),
            "code_challenge": _base64(challenge),
            "code_challenge_method": "S256",
        }
        address = self._provider()["authorization_endpoint"]
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}", secret

    def finish(self, callback: str, secret: str, query: Mapping[str, str]) -> tuple[Role, str]:
        """Return what the person may do whom the provider sent back, and their name for the audit log.

        Raises
        ------
        OpenIdError
            It is not the browser that began, the provider's answer is not what was asked for, or nobody named this
            person.
        """
        self._use(secret, query.get("state", ""))
        if query.get("iss", self._settings.issuer) != self._settings.issuer:
            raise OpenIdError("another provider answered")
        claims = self._claims(callback, query.get("code", ""), secret)
        name = claims.get(self._settings.claim)
        if self._settings.claim == "email" and claims.get("email_verified") is not True:
            raise OpenIdError("the provider has not verified the address")
        for role, names in ((Role.ACT, self._settings.act), (Role.LOOK, self._settings.look)):
            if name in names:
                return role, f"{name} ({role}) of {self._settings.issuer}"
        raise OpenIdError("nobody named this person in the file of --oidc")

    def _use(self, secret: str, state: str) -> None:
        """Refuse what was not begun in this browser, or too long ago, or was used."""
        is_ours = hmac.compare_digest(self._derived("state", secret).encode(), state.encode("utf-8", "replace"))
        if not is_ours or secret in self._used or float(secret.partition(".")[0]) < self._clock() - PENDING_SECONDS:
            raise OpenIdError("signing in was not begun in this browser, or too long ago")
        while len(self._used) >= MOST_USED:  # then only the provider refuses a code that was used
            del self._used[next(iter(self._used))]
        self._used[secret] = None

    def _derived(self, purpose: str, secret: str) -> str:
        text = f"{purpose} {secret}".encode("utf-8", "replace")
        return _base64(hmac.digest(self._key, text, "sha256"))

    def _claims(self, callback: str, code: str, secret: str) -> Mapping[str, Any]:
        from authlib.common.errors import AuthlibBaseError
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        provider = self._provider()
        try:
            with self._client(callback) as client:
                verifier = self._derived("verifier", secret)
                answer = client.fetch_token(provider["token_endpoint"], code=code, code_verifier=verifier)
                keys = KeySet.import_key_set(client.request("GET", provider["jwks_uri"], withhold_token=True).json())
            token = jwt.decode(str(answer["id_token"]), keys, algorithms=_ALGORITHMS)
            wanted: dict[str, Any] = {
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
                "nonce": {"essential": True, "value": self._derived("nonce", secret)},
                "exp": {"essential": True},
                "sub": {"essential": True},
            }
            jwt.JWTClaimsRegistry(leeway=_SKEW_SECONDS, **wanted).validate(token.claims)
        except (AuthlibBaseError, JoseError, KeyError, ValueError, TypeError) as error:
            raise OpenIdError(f"the provider's answer is refused ({type(error).__name__})") from None
        except HTTPError as error:
            raise _unreachable(error) from None
        audience = token.claims["aud"]
        several = isinstance(audience, list) and len(audience) > 1
        if token.claims.get("azp", None if several else self._settings.client_id) != self._settings.client_id:
            raise OpenIdError("the provider's answer is refused (it is for another program)")
        return token.claims

    def _client(self, callback: str) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client

        return OAuth2Client(
            self._settings.client_id,
            self._secret,
            token_endpoint_auth_method="none" if self._secret is None else "client_secret_basic",
            redirect_uri=callback,
            timeout=_TIMEOUT_SECONDS,
            verify=_authorities(),
        )

    def _provider(self) -> Mapping[str, str]:
        """Return the provider's addresses by their names."""
        if self._known is not None and self._known[0] > self._clock():
            return self._known[1]
        address = f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            answer = httpx.get(address, timeout=_TIMEOUT_SECONDS, verify=_authorities()).raise_for_status().json()
            found = {name: str(answer[name]) for name in ("issuer", *_ENDPOINTS)}
        except (HTTPError, ValueError, KeyError, TypeError) as error:
            raise _unreachable(error) from None
        if found["issuer"] != self._settings.issuer:
            raise OpenIdError(f"{address}: names another issuer")
        if not all(_is_private(found[name]) for name in _ENDPOINTS):
            raise OpenIdError(f"{address}: others could read along at an address that does not begin with https://")
        self._known = self._clock() + _KNOWN_SECONDS, found
        return found


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Return what httpx trusts by itself, which takes it a while to read."""
    return httpx.create_ssl_context()


def _read_secret(file: Path) -> str:
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{file}: cannot be read ({why}); secret_file holds the client's secret") from None
    if not secret:
        raise ConfigError(f"{file}: is empty; secret_file holds the client's secret")
    return secret


def _is_private(address: str) -> bool:
    """Return whether nobody can read along at an address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


def _unreachable(error: Exception) -> OpenIdError:
    return OpenIdError(f"no answer of the provider ({type(error).__name__})")


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
