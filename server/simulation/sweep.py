"""Sweeps: one run of a federation for each value of one key, and a report that compares them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.config.federation import FederationConfig, as_json
from common.config.yaml_file import dump_yaml, parse_yaml
from common.errors import ConfigError, FedvoxError, OutputError, was_interrupted
from common.system.files import write_atomically
from common.system.ownership import Claim
from server.progress.events import EventSink, Notice
from server.reporting.sweep_report import write_sweep_report
from server.reporting.sweep_result import SWEEP_FILE, read_result
from server.run_store.folder import RunFolder
from server.run_store.locks import only_start
from server.simulation.data_setup import find_or_make_data
from server.simulation.experiment import SimulationOptions, simulate
from server.simulation.leftovers import SWEEP_PREPARED, leftovers_of_sweep

EPSILON = "privacy.epsilon"
WITHOUT_PRIVACY = "inf"


@dataclass(frozen=True)
class SweepValue:
    """One value: its text, the ``--set`` item that sets it, and the folder of its run."""

    text: str
    override: str
    folder: str


@dataclass(frozen=True)
class Sweep:
    """The key to vary, and its values in the order given."""

    key: str
    values: tuple[SweepValue, ...]


def parse_sweep(item: str) -> Sweep:
    """Parse ``key.path=value,value,...``.

    Values are YAML. For ``privacy.epsilon``, ``inf`` means without privacy.

    Raises
    ------
    ConfigError
        If there is no key, no value, or a duplicate value.
    """
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--sweep {item}: write it as key.path=value,value, for example privacy.epsilon=1,3,8,inf")
    values = parse_yaml(f"[{text}]", f"--sweep {item}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--sweep {item}: has no values; write them separated by commas: {key}=1,3,8")
    found: list[SweepValue] = []
    seen: list[object] = []
    for value in values:
        comparable = _comparable(value)
        if comparable in seen:
            raise ConfigError(f"--sweep {item}: {_text(value)} is given twice; keep one of them")
        seen.append(comparable)
        found.append(_sweep_value(key, value, {other.folder for other in found}))
    return Sweep(key, tuple(found))


def _comparable(value: object) -> object:
    """Return a form in which equal numbers compare equal (8 and 8.0, 1e1 and 10); booleans are not numbers."""
    if isinstance(value, bool):
        return str(value)
    try:
        return float(value) if isinstance(value, int | float | str) else value
    except ValueError:
        return value


def _sweep_value(key: str, value: object, taken: set[str]) -> SweepValue:
    text = _text(value)
    override = f"{key}={text}"
    if key == EPSILON and _comparable(value) == float("inf"):
        text, override = WITHOUT_PRIVACY, "privacy=null"
    name = f"{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9._-]+', '-', text).strip('-')}"
    folder, number = name, 2
    while folder in taken:
        folder, number = f"{name}-{number}", number + 1
    return SweepValue(text, override, folder)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return dump_yaml(value, in_a_line=True)


def sweep_configurations(
    sweep: Sweep, load: Callable[[Sequence[str]], FederationConfig]
) -> dict[SweepValue, FederationConfig]:
    """Load the federation for every value, so that all are checked before the first one runs.

    Parameters
    ----------
    sweep
        The key and its values.
    load
        Reads the federation file with additional ``--set`` items.

    Raises
    ------
    ConfigError
        If the file cannot be used with one of the values.
    """
    base = load([])
    if sweep.key.split(".")[0] == "privacy" and base.privacy is None:
        raise ConfigError(
            f"--sweep {sweep.key}: the federation file has no privacy section; "
            "add one, such as privacy: {epsilon: 8, delta: 1.0e-5}"
        )
    configurations = {value: load([value.override]) for value in sweep.values}
    for config in configurations.values():
        if config.simulation is None:
            raise ConfigError("simulation: is missing; a simulation needs simulation.partition (see deploy/examples)")
    return configurations


def run_sweep(
    sweep: Sweep,
    configurations: Mapping[SweepValue, FederationConfig],
    options: SimulationOptions,
    emit: EventSink,
) -> tuple[Path, bool]:
    """Run or resume a simulation for every value, in folders below ``options.out``.

    If the run of one value fails, the problem is recorded and the others still run.

    Returns
    -------
    tuple[Path, bool]
        The path of the report, and whether all runs finished.

    Raises
    ------
    FedvoxError
        If the configuration, data or output cannot be used.
    KeyboardInterrupt
        If the user stops the sweep. Finished runs stay, with a report.
    """
    _left_in(options)
    with only_start(options.out, SWEEP_PREPARED) as claim:
        _open_folder(sweep, options, claim)
        return _run_all(sweep, configurations, options, emit, claim)


def _run_all(
    sweep: Sweep,
    configurations: Mapping[SweepValue, FederationConfig],
    options: SimulationOptions,
    emit: EventSink,
    claim: Claim,
) -> tuple[Path, bool]:
    problems: dict[str, str] = {}
    first: FedvoxError | None = None
    try:
        data = _shared_data(configurations, options, emit)
        for number, (value, config) in enumerate(configurations.items(), start=1):
            emit(Notice(f"{sweep.key}={value.text} ({number} of {len(configurations)})"))
            folder = options.out / value.folder
            try:
                simulate(config, replace(options, data=data, out=folder, resume=True), emit)
            except (ConfigError, OutputError):
                raise
            except FedvoxError as error:
                if was_interrupted(error):
                    raise KeyboardInterrupt from error
                first = first or error
                problems[value.text] = str(error)
                emit(Notice(f"{sweep.key}={value.text} failed: {error}"))
            finally:
                if RunFolder(folder).has_begun():
                    claim.keep()
            _write(sweep, options.out, problems)
        if first is not None and not claim.kept:
            raise first
    finally:
        report = _write(sweep, options.out, problems)
    return report, not problems


def _left_in(options: SimulationOptions) -> set[str] | None:
    """Return what a killed start left in the folder of a sweep; None if a run in it has begun.

    Raises
    ------
    OutputError
        The folder holds something else.
    """
    out = options.out
    try:
        found = list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
        if any(path.is_dir() and RunFolder(path).has_begun() for path in found):
            return None
        left = leftovers_of_sweep(out) if out.is_dir() else None if found else set()
    except OSError as error:
        raise OutputError(f"{out}: cannot be read: {error.strerror or error}; choose another --out") from None
    if left is None:
        problem = "is not the folder of a sweep" if options.resume else "exists already"
        raise OutputError(f"{out}: {problem}; choose another --out")
    return left


def _open_folder(sweep: Sweep, options: SimulationOptions, claim: Claim) -> None:
    out, left = options.out, _left_in(options)
    if left is not None:
        # The file that proves that the others are a sweep's goes last.
        for name in sorted(left, key=lambda name: name == SWEEP_FILE):
            claim.clear(name)
        _write(sweep, out, {})
        return
    if not options.resume:
        raise OutputError(f"{out}: exists already; choose another --out, or continue it with --resume")
    try:
        key = json.loads((out / SWEEP_FILE).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{out}: is not the folder of a sweep; choose another --out") from None
    if key != sweep.key:
        raise ConfigError(f"{out}: is a sweep of {key}, not of {sweep.key}; choose another --out")
    claim.keep()


def _shared_data(
    configurations: Mapping[SweepValue, FederationConfig], options: SimulationOptions, emit: EventSink
) -> Path | None:
    """Find the dataset of all runs; make phantoms once, unless the sweep varies them."""
    first, *others = configurations.values()
    if options.data is None and any(_phantoms(config) != _phantoms(first) for config in others):
        return None
    return find_or_make_data(first, options.data, RunFolder(options.out), emit)


def _phantoms(config: FederationConfig) -> object:
    return config.simulation.phantom if config.simulation else None


def _write(sweep: Sweep, out: Path, problems: Mapping[str, str]) -> Path:
    """Write ``sweep.json`` and the report made from it."""
    values: list[dict[str, Any]] = []
    for value in sweep.values:
        result = read_result(out / value.folder)
        if value.text in problems:
            result |= {"status": "failed", "problem": problems[value.text]}
        values.append({"value": value.text, "folder": value.folder} | result)
    write_atomically(out / SWEEP_FILE, as_json({"key": sweep.key, "runs": values}))
    return write_sweep_report(out)
