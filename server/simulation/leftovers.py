"""Tells what a killed start left in a run folder from files of anybody else; only the former is ever removed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from common.config.federation import FederationConfig, as_json
from common.config.yaml_file import dump_yaml, parse_yaml
from common.errors import ConfigError, DamagedFileError
from common.system.state_file import read_sealed
from server.reporting.sweep_result import SWEEP_FILE
from server.run_store.folder import FEDERATION_FILE, PARTITION_FILE, PLAN_FILE, REPORT_FILE, STATE_FILE, RunFolder
from server.run_store.locks import START_LOCK
from server.run_store.weight_file import SPARE
from server.simulation.data_record import DATA_FILE
from server.simulation.data_setup import PHANTOM_DIGESTS, PHANTOMS, damage_of_phantoms

_CHECKPOINTS = "checkpoints"
_FILES = frozenset({FEDERATION_FILE, PLAN_FILE, PARTITION_FILE, DATA_FILE, PHANTOM_DIGESTS})
PREPARED = _FILES | {PHANTOMS, _CHECKPOINTS}
"""What a start makes in a run folder before the run begins."""
SWEEP_PREPARED = frozenset({SWEEP_FILE, REPORT_FILE, PHANTOMS, PHANTOM_DIGESTS})
"""What a sweep makes in its folder, besides the folders of its runs."""
COMPARISON_FILE = "comparison.json"
RESULTS_FILE = "results.json"
"""Of a comparison: what is compared, and what came out."""
COMPARISON_PREPARED = frozenset({COMPARISON_FILE, PLAN_FILE, PARTITION_FILE, DATA_FILE, PHANTOMS, PHANTOM_DIGESTS})
"""What a comparison makes in its folder before its first run."""
_UNFINISHED = re.compile(r"\.+(?P<name>[^.].*?)(\.[0-9a-f]{12}\.part)+")


def _entries(path: Path) -> dict[str, Path] | None:
    """Return what lies in a folder besides the lock of a start; None if there is something, and no such lock."""
    entries = {entry.name: entry for entry in path.iterdir() if entry.name != START_LOCK}
    return None if entries and not (path / START_LOCK).is_file() else entries


def _with_sound_phantoms(path: Path, names: set[str]) -> set[str] | None:
    """Return the names, or None if phantoms are among them that do not have their digests."""
    return None if PHANTOMS in names and damage_of_phantoms(RunFolder(path)) is not None else names


def leftovers(path: Path) -> set[str] | None:
    """Return the names of what a killed start left in a run folder; None if anything may be somebody else's.

    A start makes its lock file first and ``federation.yaml`` before its other files. Their names alone prove nothing:
    ``federation.yaml`` must be as a start writes it, phantoms must have their digests, and the folder of checkpoints
    must hold no more than the first one.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    entries = _entries(path)
    if not entries:
        return None if entries is None else set()
    if not all(_may_be_left(entry) for entry in entries.values()):
        return None
    if entries.keys() - {_CHECKPOINTS} and not _is_written_by_a_start(path / FEDERATION_FILE):
        unfinished = {name for name in entries if _unfinished_name(name) == FEDERATION_FILE}
        return set(entries) if entries.keys() == unfinished | {_CHECKPOINTS} else None
    return _with_sound_phantoms(path, set(entries))


def leftovers_of_sweep(path: Path) -> set[str] | None:
    """Return the names of what a killed start left in the folder of a sweep; None if anything may be somebody else's.

    The folders of its runs are not among them: each is cleared by its own run, under its own lock. ``sweep.json``
    comes first, and must be as a sweep writes it.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    entries = _entries(path)
    if not entries:
        return None if entries is None else set()
    if any(entry.is_symlink() for entry in entries.values()):
        return None
    own = {name for name in entries if (_unfinished_name(name) or name) in SWEEP_PREPARED}
    if any(not entries[name].is_dir() or leftovers(entries[name]) is None for name in entries.keys() - own):
        return None
    first = {name for name in own if _unfinished_name(name) == SWEEP_FILE}
    if entries.keys() - first and not _is_written_by_a_sweep(path / SWEEP_FILE):
        return None
    return _with_sound_phantoms(path, own)


def leftovers_of_comparison(path: Path) -> set[str] | None:
    """Return the names of what a killed start left in the folder of a comparison; None if any may be somebody else's.

    ``comparison.json`` comes first, and must be as a comparison writes it.

    Raises
    ------
    OSError
        The folder cannot be read.
    """
    entries = _entries(path)
    if not entries:
        return None if entries is None else set()
    if any(entry.is_symlink() for entry in entries.values()):
        return None
    if any((_unfinished_name(name) or name) not in COMPARISON_PREPARED for name in entries):
        return None
    first = {name for name in entries if _unfinished_name(name) == COMPARISON_FILE}
    if entries.keys() - first and not _is_sealed(path / COMPARISON_FILE):
        return None
    return _with_sound_phantoms(path, set(entries))


def _is_sealed(file: Path) -> bool:
    try:
        read_sealed(file, "")
    except DamagedFileError:
        return False
    return True


def _may_be_left(entry: Path) -> bool:
    if entry.is_symlink():
        return False
    if entry.is_dir() and entry.name == _CHECKPOINTS:
        first = RunFolder(entry.parent).checkpoint_path(0).name
        names = {found.name for found in entry.iterdir()}
        return all(name in (first, SPARE) or _unfinished_name(name) == first for name in names)
    unfinished = _unfinished_name(entry.name)
    if entry.is_dir():
        return PHANTOMS in (entry.name, unfinished)
    return entry.name in _FILES or unfinished in {*_FILES, STATE_FILE}


def _unfinished_name(name: str) -> str | None:
    """Return the name that a temporary file or folder would have got; None if it is none."""
    found = _UNFINISHED.fullmatch(name)
    return found["name"] if found else None


def _is_written_by_a_start(file: Path) -> bool:
    """Return whether a federation file has every key, in the form in which a start writes it."""
    try:
        text = file.read_text(encoding="utf-8")
        content = parse_yaml(text, file.name)
    except (OSError, ValueError, ConfigError):
        return False
    complete = isinstance(content, dict) and content.keys() >= FederationConfig.model_fields.keys()
    return complete and dump_yaml(content) == text


def _is_written_by_a_sweep(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == {"key", "runs"} and as_json(content) == text
