"""Opens the run folder of a simulation: a new one, one to resume, or one whose start was killed before it began."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig
from common.config.yaml_file import parse_yaml
from common.errors import ConfigError, OutputError
from common.system.state_file import CHANGED, MISSING, put_aside
from server.progress.events import EventSink, Notice
from server.run_store.folder import FEDERATION_FILE, RunFolder
from server.run_store.locks import only_start
from server.simulation.leftovers import PREPARED, leftovers


@contextlib.contextmanager
def open_run(path: Path, resume: bool, config: FederationConfig, emit: EventSink) -> Iterator[RunFolder]:
    """Own the folder of a run for a block.

    A run that has not begun has no state yet, and leaves nothing behind if its start is refused. What a killed start
    left is removed. If the block raises after the run has begun, everything stays.

    Parameters
    ----------
    path
        The run folder.
    resume
        Whether a run that has begun may go on.
    config
        The federation.
    emit
        Takes notices.

    Raises
    ------
    FedvoxError
        Another process works on the run.
    OutputError
        The folder holds something else, or a run that is not to be resumed, or cannot be made.
    ConfigError
        The run began with another configuration.
    DamagedFileError
        The state of the run is missing or damaged.
    """
    _refuse_others(path, resume)
    with only_start(path, PREPARED) as claim:
        left = _refuse_others(path, resume)
        folder = RunFolder(path)
        if folder.has_begun():
            if not resume:
                raise _exists(path, resume)
            folder.load_state()  # before anything is touched: without a state, the folder may be anybody's
            claim.keep()
            _check_configuration(folder, config, emit)
        else:
            # The file that proves that the others are a start's goes last.
            for name in sorted(left, key=lambda name: name == FEDERATION_FILE):
                claim.clear(name)
            folder = RunFolder.create(path)
            folder.write_text(FEDERATION_FILE, config.resolved())
        try:
            yield folder
        finally:
            if folder.has_begun():
                claim.keep()


def _refuse_others(path: Path, resume: bool) -> set[str]:
    """Refuse a folder that holds something else than a run; return what a killed start left."""
    try:
        if not path.exists():
            return set()
        if path.is_dir() and RunFolder(path).has_begun():
            return set()
        found = leftovers(path) if path.is_dir() else None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}; choose another --out") from None
    if found is None:
        raise _exists(path, resume)
    return found


def _exists(path: Path, resume: bool) -> OutputError:
    if resume:
        return OutputError(f"{path}: is not the folder of a run; choose another --out")
    return OutputError(f"{path}: exists already; choose another --out, or continue it with --resume")


def _check_configuration(folder: RunFolder, config: FederationConfig, emit: EventSink) -> None:
    """Refuse to resume a run with another configuration, and write a damaged file anew."""
    file = folder.path / FEDERATION_FILE
    try:
        written = file.read_bytes()
    except FileNotFoundError:
        written = b""
    if written == config.resolved().encode():
        return
    state = folder.load_state()
    if (
        state is not None
        and state.digests.get(FEDERATION_FILE) == hashlib.sha256(config.resolved().encode()).hexdigest()
    ):
        put_aside(file)
        folder.write_text(FEDERATION_FILE, config.resolved())
        emit(Notice(f"{file}: {CHANGED if written else MISSING}; it is written anew"))
        return
    try:
        differing = ", ".join(differences(parse_yaml(written.decode(), file.name), config.model_dump(mode="json"))[:5])
    except (ValueError, ConfigError):
        differing = "it cannot be read"
    raise ConfigError(
        f"{file}: was written with a different configuration ({differing}); "
        "resume with the same file and --set values, or start a new run"
    )


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return the keys whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = {str(name): name for name in (*before, *after)}
        old, new = ({str(name): value for name, value in content.items()} for content in (before, after))
        return [
            found
            for name in names
            for found in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if isinstance(before, list) and isinstance(after, list) and before == after:
        return []
    return [] if before == after else [f"{key}: {before} then, {after} now"]
