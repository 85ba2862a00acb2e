"""Signing in through an OpenID Connect provider (authorization code with PKCE), for those whom a file names.

``authlib`` makes the requests and checks the ID token's signature; it is an optional dependency (``oidc``).
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from httpx import HTTPError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.yaml_file import read_yaml
from common.errors import ConfigError, FedvoxError
from common.web.visits import Role

BEGIN, CALLBACK = "/openid", "/openid/callback"
MOST_PENDING = 64
PENDING_SECONDS = 600.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ALGORITHMS = ["RS256", "PS256", "ES256", "ES384"]
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
        File with the client's secret; none for a public client.
    claim
        What of the ID token names a person: ``sub``, or ``email`` if the provider has verified it.
    act, look
        Who may act, and who may look, by that claim.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str
    client_id: str
    secret_file: Path | None = None
    claim: Annotated[str, Field(pattern="^(sub|email)$")] = "sub"
    act: Names
    look: Names


def read_settings(file: Path) -> OpenIdSettings:
    """Read the file of ``--oidc``.

    Raises
    ------
    ConfigError
        It cannot be used.
    """
    try:
        settings = OpenIdSettings.model_validate(read_yaml(file))
    except FileNotFoundError:
        raise ConfigError(f"{file}: does not exist; see deploy/docs/pages.md") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    parts = urlsplit(settings.issuer)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ConfigError(f"{file}: issuer: begins with https:// unless it is on this machine")
    return settings


@dataclass(frozen=True)
class _Pending:
    state: str
    nonce: str
    verifier: str
    until: float


class OpenId:
    """Signs people in through one provider.

    Parameters
    ----------
    settings
        The provider, and whom it may sign in.
    url
        The address of our own pages.
    """

    def __init__(self, settings: OpenIdSettings, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._callback = f"{url}{CALLBACK}"
        self._clock = clock
        self._pending: dict[str, _Pending] = {}

    def begin(self) -> tuple[str, str]:
        """Return the provider's address for signing in, and a secret for a cookie of the same browser."""
        while len(self._pending) >= MOST_PENDING:
            del self._pending[next(iter(self._pending))]
        secret, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        with self._client() as client:
            address = self._provider(client)["authorization_endpoint"]
            to, state = client.create_authorization_url(address, nonce=nonce, code_verifier=verifier)
        self._pending[secret] = _Pending(state, nonce, verifier, self._clock() + PENDING_SECONDS)
        return str(to), secret

    def finish(self, secret: str, query: Mapping[str, str]) -> tuple[Role, str]:
        """Return what the person may do whom the provider sent back, and their name for the audit log.

        Raises
        ------
        OpenIdError
            It is not the browser that began, the provider's answer is not what was asked for, or nobody named this
            person.
        """
        pending = self._pending.pop(secret, None)
        if pending is None or pending.until < self._clock() or not _same(pending.state, query.get("state", "")):
            raise OpenIdError("signing in was not begun in this browser, or too long ago")
        claims = self._claims(query.get("code", ""), pending)
        name = str(claims.get(self._settings.claim, ""))
        if self._settings.claim == "email" and claims.get("email_verified") is not True:
            raise OpenIdError("the provider has not verified the address")
        for role, names in ((Role.ACT, self._settings.act), (Role.LOOK, self._settings.look)):
            if name in names:
                return role, f"{name} ({role}) of {self._settings.issuer}"
        raise OpenIdError("nobody named this person in the file of --oidc")

    def _claims(self, code: str, pending: _Pending) -> Mapping[str, Any]:
        from authlib.common.errors import AuthlibBaseError
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        try:
            with self._client() as client:
                provider = self._provider(client)
                answer = client.fetch_token(provider["token_endpoint"], code=code, code_verifier=pending.verifier)
                keys = KeySet.import_key_set(client.request("GET", provider["jwks_uri"], withhold_token=True).json())
            token = jwt.decode(str(answer["id_token"]), keys, algorithms=_ALGORITHMS)
            wanted: dict[str, Any] = {
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
                "nonce": {"essential": True, "value": pending.nonce},
                "exp": {"essential": True},
                "sub": {"essential": True},
            }
            jwt.JWTClaimsRegistry(leeway=60, **wanted).validate(token.claims)
        except (AuthlibBaseError, JoseError, KeyError, ValueError, TypeError) as error:
            raise OpenIdError(f"the provider's answer is refused ({type(error).__name__})") from None
        except HTTPError as error:
            raise _unreachable(error) from None
        return token.claims

    def _client(self) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client

        file = self._settings.secret_file
        return OAuth2Client(
            self._settings.client_id,
            file.read_text(encoding="utf-8").strip() if file else None,
            token_endpoint_auth_method="client_secret_basic" if file else "none",
            scope="openid email" if self._settings.claim == "email" else "openid",
            redirect_uri=self._callback,
            code_challenge_method="S256",
            timeout=_TIMEOUT_SECONDS,
        )

    def _provider(self, client: Any) -> Mapping[str, str]:
        address = f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            found = client.request("GET", address, withhold_token=True).raise_for_status().json()
            wrong = found["issuer"] != self._settings.issuer
        except (HTTPError, ValueError, KeyError, TypeError) as error:
            raise _unreachable(error) from None
        if wrong:
            raise OpenIdError(f"{address}: names another issuer")
        return dict(found)


def _unreachable(error: Exception) -> OpenIdError:
    return OpenIdError(f"no answer of the provider ({type(error).__name__})")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "replace"))
