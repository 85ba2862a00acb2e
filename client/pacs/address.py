"""How to reach an archive: ``pacs.yaml``, a URL of DICOMweb, or ``TITLE@host:port``."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    IPvAnyAddress,
    IPvAnyNetwork,
    StringConstraints,
    ValidationError,
    model_validator,
)

from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.plan.base import Frozen, Real, Whole
from common.plan.describe_errors import describe_validation_error
from common.system.cli import STRANGERS

Title = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=r"^[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?$")]
"""An AE title: up to 16 characters of ASCII, without backslash."""
Port = Annotated[Whole, Field(ge=1, le=65535)]
_SHORT = re.compile(r"(?P<title>[^@]+)@(?P<host>[^@]+):(?P<port>[0-9]{1,5})")
_LONGEST_UID = 64


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("url must be the base URL of a DICOMweb service, such as https://pacs.example/dicom-web")
    if parts.username or parts.password:
        raise ValueError("url must hold no user and no password: use token_file")
    return value.rstrip("/")


class Tls(Frozen):
    """Files in PEM for TLS, beside ``pacs.yaml``.

    Attributes
    ----------
    ca
        Certificates that the archive's is checked against; those of the system by default.
    certificate, key
        Our own, if the archive wants one.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class Store(Frozen):
    """Where an archive sends to by C-MOVE.

    Attributes
    ----------
    address, port
        Of this machine, as the archive has it beside our AE title.
    sender_titles
        AE titles that the archive sends from; its own by default.
    sender_networks
        Addresses that it sends from, such as 10.1.2.0/24; those of its host by default.
    """

    address: IPvAnyAddress
    port: Port
    sender_titles: tuple[Title, ...] = ()
    sender_networks: tuple[IPvAnyNetwork, ...] = ()


class Patience(Frozen):
    """How long to wait, and how often to try.

    Attributes
    ----------
    idle_seconds
        How long the archive may be silent.
    study_seconds
        How long an attempt to fetch a study may take.
    attempts
        How often a study is tried.
    pause_seconds
        Before the second attempt; twice as long before each further one.
    """

    idle_seconds: Annotated[Real, Field(ge=0.1, le=3600)] = 60.0
    study_seconds: Annotated[Real, Field(ge=0.1, le=86400)] = 1800.0
    attempts: Annotated[Whole, Field(ge=1, le=10)] = 3
    pause_seconds: Annotated[Real, Field(ge=0, le=600)] = 5.0


class ArchiveAddress(Patience):
    """An archive: its AE title, host and port, or the URL of its DICOMweb service.

    Attributes
    ----------
    ae_title, host, port
        For DICOM.
    own_ae_title
        What we call ourselves; the archive must know it.
    url
        For DICOMweb: its base, to which ``/studies`` is added.
    token_file
        A file with a bearer token for DICOMweb.
    tls
        For DICOM, TLS is used if this is there; a URL says it itself.
    retrieve, store
        For DICOM: by C-GET, or by C-MOVE to our own store.
    """

    ae_title: Title | None = None
    host: str | None = None
    port: Port | None = None
    own_ae_title: Title = "FEDVOX"
    url: str | None = None
    token_file: str | None = None
    tls: Tls | None = None
    retrieve: Literal["get", "move"] = "get"
    store: Store | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_what_it_means(cls, content: Any) -> Any:
        # Not validators of the keys: what is wrong with a key is told with its value, and a URL may hold a password.
        if not isinstance(content, Mapping):
            return content
        if "tls" in content and content["tls"] is None:
            raise ValueError("tls is empty: give ca, write tls: {} for the system's certificates, or remove it")
        url = content.get("url")
        return {**content, "url": _web_address(url)} if isinstance(url, str) else content

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        dicom = (self.ae_title, self.host, self.port)
        if self.url is None and None in dicom:
            raise ValueError("needs ae_title, host and port for DICOM, or url for DICOMweb")
        if self.url is not None and any(one is not None for one in dicom):
            raise ValueError("has both url and ae_title, host or port: keep one of the two")
        if self.token_file and (self.url is None or urlsplit(self.url).scheme != "https"):
            raise ValueError("token_file is for a url with https alone: elsewhere others could read the token")
        if self.tls and self.url is not None and urlsplit(self.url).scheme != "https":
            raise ValueError("tls is for DICOM or a url with https: write https, or remove tls")
        if (self.retrieve == "move") != (self.store is not None) or (self.store and self.url):
            raise ValueError("retrieve: move and store belong together, and to DICOM")
        if self.store and self.tls and not (self.tls.ca and self.tls.certificate):
            raise ValueError("tls needs ca, certificate and key, because the archive connects to our store")
        if self.tls and bool(self.tls.certificate) != bool(self.tls.key):
            raise ValueError("tls needs both certificate and key, or neither")
        return self


def read_address(text: str) -> tuple[ArchiveAddress, Path]:
    """Read what ``--from`` says.

    Returns
    -------
    tuple[ArchiveAddress, Path]
        The archive, and the folder in which files that it names lie.

    Raises
    ------
    ConfigError
        It is no URL, no ``TITLE@host:port`` and no usable file.
    """
    if "://" in text:
        return _checked({"url": text}, "--from"), Path()
    if short := _SHORT.fullmatch(text):
        values = {"ae_title": short["title"], "host": short["host"].strip("[]"), "port": int(short["port"])}
        return _checked(values, "--from"), Path()
    path = Path(text)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"--from {text}: give pacs.yaml, a URL of DICOMweb, or TITLE@host:port") from None
    return _checked({} if content is None else content, str(path)), path.parent


def _checked(content: object, source: str) -> ArchiveAddress:
    try:
        return ArchiveAddress.model_validate(content)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, ArchiveAddress, source)) from None


def credentials(address: ArchiveAddress, folder: Path) -> tuple[ssl.SSLContext | None, str]:
    """Read what an address names for TLS, and its token: None and an empty text where it names none.

    Parameters
    ----------
    address
        The archive.
    folder
        Where files that it names lie.

    Raises
    ------
    ConfigError
        One of these files cannot be used.
    """
    tls = tls_context(address.tls, folder) if address.tls else None
    return tls, read_token(folder / address.token_file) if address.token_file else ""


def tls_context(tls: Tls, folder: Path) -> ssl.SSLContext:
    """Return the TLS of a client that checks the archive's certificate and name.

    Raises
    ------
    ConfigError
        A file is missing or damaged.
    """
    try:
        context = ssl.create_default_context(cafile=folder / tls.ca if tls.ca else None)
        if tls.certificate and tls.key:
            context.load_cert_chain(folder / tls.certificate, folder / tls.key)
    except OSError as error:
        raise ConfigError(f"tls: cannot use its files in {folder}: {error.strerror or error}") from None
    return context


def read_token(path: Path) -> str:
    """Read a bearer token from its file.

    Raises
    ------
    ConfigError
        It is missing, empty or no token, or others may read it.
    """
    try:
        if path.stat().st_mode & STRANGERS:
            raise ConfigError(f"token_file {path}: others may read it; chmod 600 {path}, and ask for another token")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {path}: cannot be read ({type(error).__name__})") from None
    if not re.fullmatch(r"[!-~]{1,8192}", token):
        raise ConfigError(f"token_file {path}: must hold one token and nothing else")
    return token


def is_uid(text: str) -> bool:
    """Return whether a text is a UID, and therefore safe as a file name: digits with dots between them."""
    return len(text) <= _LONGEST_UID and re.fullmatch(r"[0-9]+(\.[0-9]+)+", text) is not None
