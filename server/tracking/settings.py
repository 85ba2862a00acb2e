"""``tracking.yaml``: where the coordinator follows its runs. It belongs to this machine, not to the federation."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from common.config.yaml_file import read_yaml
from common.errors import ConfigError
from common.formatting import without_passwords
from common.system.hosts import is_this_machine

KEYS = ("mlflow", "experiment", "tensorboard")
VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Environment variables of MLflow's own clients: user, password, and a token instead of both."""
LONGEST_URI = 2000
LONGEST_EXPERIMENT = 200


@dataclass(frozen=True)
class MlflowServer:
    """A tracking server; its string form has no secret.

    Attributes
    ----------
    url
        Where its REST API begins, without user and password.
    user, password
        For HTTP basic authentication; empty for none.
    token
        A bearer token instead of them; empty for none.
    """

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class TrackingSettings:
    """Where to send what happens in a run.

    Attributes
    ----------
    mlflow
        None for no MLflow.
    experiment
        MLflow's experiment; None is the federation's name.
    tensorboard
        Whether to write TensorBoard's files into the run folder.
    """

    mlflow: MlflowServer | None = None
    experiment: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.mlflow is None and not self.tensorboard:
            raise ConfigError("tracking: names neither a server (mlflow) nor tensorboard; name at least one")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("tensorboard: the package is not installed; run pip install 'fedvox[tensorboard]'")


def read_tracking(path: Path) -> TrackingSettings:
    """Read ``tracking.yaml``. No error repeats a value or an unknown key of the file, which may hold a password.

    Raises
    ------
    ConfigError
        The file is missing or cannot be used.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist; write one, such as mlflow: http://127.0.0.1:5000") from None
    except ConfigError as error:
        raise ConfigError(without_passwords(str(error))) from None
    if not isinstance(content, dict) or not content.keys() <= set(KEYS):
        raise ConfigError(f"{path}: must be a mapping with no other keys than {', '.join(KEYS)}")
    address, experiment = content.get("mlflow"), content.get("experiment")
    tensorboard = content.get("tensorboard", False)
    if not isinstance(tensorboard, bool):
        raise ConfigError(f"{path}: tensorboard: must be true or false")
    if experiment is not None and not (isinstance(experiment, str) and _is_name(experiment)):
        raise ConfigError(f"{path}: experiment: must be a name of at most {LONGEST_EXPERIMENT} printable characters")
    server = None if address is None else parse_server(address, f"{path}: mlflow")
    try:
        return TrackingSettings(server, experiment, tensorboard)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_server(text: object, source: str, environment: Mapping[str, str] = os.environ) -> MlflowServer:
    """Parse the address of an MLflow server, with user and password in it or in ``VARIABLES``.

    Parameters
    ----------
    text
        ``https://USER:PASSWORD@HOST:PORT/PREFIX``; all but scheme and host may be missing.
    source
        The key or option that it comes from, for errors.
    environment
        Where ``VARIABLES`` are looked up.

    Raises
    ------
    ConfigError
        It is no such address, or would carry a secret through a network unencrypted. The error does not repeat it.
    """
    parts = _split(text) if isinstance(text, str) else None
    if parts is None:
        raise ConfigError(
            f"{source}: must be the address of an MLflow server, such as https://tracking.example.org:5000; "
            "special characters of user and password percent-encoded"
        )
    user, password, token = (environment.get(name, "") for name in VARIABLES)
    if parts.username:
        user, password, token = unquote(parts.username), unquote(parts.password or ""), ""
    if (user or token) and parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        raise ConfigError(
            f"{source}: would send password or token unencrypted to another machine; use https, or a tunnel that ends "
            "at 127.0.0.1"
        )
    host = parts.netloc.rpartition("@")[2]
    return MlflowServer(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", user, password, token)


def _split(text: str) -> SplitResult | None:
    """Return the parts of an address, or None if it cannot be used."""
    if len(text) > LONGEST_URI or not text.isascii() or not text.isprintable() or " " in text:
        return None
    try:
        parts = urlsplit(text)
        usable = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        return None
    # A password with an unescaped / or # would otherwise be taken for a path, and shown.
    return parts if usable and not parts.query and not parts.fragment and "@" not in parts.path else None


def _is_name(text: str) -> bool:
    return bool(text.strip()) and len(text) <= LONGEST_EXPERIMENT and text.isprintable()
