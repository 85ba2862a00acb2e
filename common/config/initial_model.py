"""The initial model of a federation: resolve its path and pin it by its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from common.errors import ConfigError


def resolve_initial_model(content: dict[Any, Any], file: Path, base: Path) -> None:
    """Make ``initial_model`` in a federation file's content absolute, and fill in ``initial_model_sha256``.

    A missing folder is accepted if the hash is given: sites do not need the model itself.

    Parameters
    ----------
    content
        Content of the file; changed in place. Values of wrong types are left for the schema to reject.
    file
        The federation file, for messages.
    base
        Folder that a relative path starts from.

    Raises
    ------
    ConfigError
        If the model is missing and has no hash, or does not match its hash.
    """
    folder, stated = content.get("initial_model"), content.get("initial_model_sha256")
    if not isinstance(folder, str) or not folder:
        return
    place = base.absolute() / Path(folder).expanduser()
    content["initial_model"] = str(place)
    if not place.exists():
        if stated is None:
            raise ConfigError(f"{file}: initial_model: {place} does not exist; give the folder of a model (a bundle)")
        return
    found = hash_weights(place)
    if stated is not None and stated != found:
        raise ConfigError(
            f"{file}: initial_model: the weights in {place} have SHA-256 {found}, and initial_model_sha256 is "
            f"{stated}; restore the intended model, or remove initial_model_sha256"
        )
    content["initial_model_sha256"] = found


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of a bundle's weights file.

    Raises
    ------
    ConfigError
        If the folder is not a bundle.
    """
    # Imported late because it imports numpy, which reading a configuration does not need otherwise.
    from common.models.bundle_file import WEIGHTS_FILE

    try:
        with (folder / WEIGHTS_FILE).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"initial_model: {folder / WEIGHTS_FILE} cannot be read ({error.strerror or error}); give the folder of a "
            "model (a bundle), such as the one that fedvox-server export writes"
        ) from None
