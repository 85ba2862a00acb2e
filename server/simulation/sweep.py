"""One federation under several values of one key, each a run of its own, and what they reached side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from common.config.federation import FederationConfig, as_json
from common.errors import ConfigError, FedvoxError, OutputError
from common.system.files import write_atomically
from server.progress.display import ProgressDisplay
from server.reporting.sweep_report import write_sweep_report
from server.reporting.sweep_result import SWEEP_FILE, read_result
from server.run_store.folder import RunFolder
from server.simulation.data_setup import find_or_make_data
from server.simulation.experiment import SimulationOptions, simulate

EPSILON = "privacy.epsilon"
WITHOUT_PRIVACY = "inf"


@dataclass(frozen=True)
class SweepValue:
    """One value: as it is written, the ``--set`` item that sets it, and the folder of its run."""

    text: str
    override: str
    folder: str


@dataclass(frozen=True)
class Sweep:
    """The key that changes, and its values in the order in which they were asked for."""

    key: str
    values: tuple[SweepValue, ...]


def parse_sweep(item: str) -> Sweep:
    """Reads ``key.path=value,value,...``; values are YAML, and ``inf`` for ``privacy.epsilon`` means without privacy.

    Raises
    ------
    ConfigError
        there is no key, no value, or a value stands twice.
    """
    key, equals, text = (part.strip() for part in item.partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--sweep {item}: write it as key.path=value,value, for example privacy.epsilon=1,3,8,inf")
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise ConfigError(f"--sweep {item}: the values are not valid YAML") from None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--sweep {item}: has no values; write them separated by commas: {key}=1,3,8")
    found: list[SweepValue] = []
    seen: list[object] = []
    for value in values:
        same = _comparable(value)
        if same in seen:
            raise ConfigError(f"--sweep {item}: {_text(value)} stands twice; keep one of them")
        seen.append(same)
        found.append(_sweep_value(key, value, {other.folder for other in found}))
    return Sweep(key, tuple(found))


def _comparable(value: object) -> object:
    """A form in which 8, 8.0 and 1e1 and 10 are the same; truth values are no numbers."""
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
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def sweep_configurations(
    sweep: Sweep, load: Callable[[Sequence[str]], FederationConfig]
) -> dict[SweepValue, FederationConfig]:
    """The federation of every value, checked before the first of them runs.

    Parameters
    ----------
    sweep
        what to change.
    load
        reads the federation file with further ``--set`` items.

    Raises
    ------
    ConfigError
        the file cannot be used with one of the values.
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
    display: ProgressDisplay,
) -> tuple[Path, bool]:
    """Runs, or goes on with, a simulation for every value in folders below ``options.out``.

    A value whose federation cannot go on is noted, and the others still run.

    Returns
    -------
    tuple[Path, bool]
        The path of the report, and whether all runs finished.

    Raises
    ------
    FedvoxError
        configuration, data or output cannot be used.
    KeyboardInterrupt
        the user stopped it; what is finished stays, with a report.
    """
    _open_folder(sweep, options)
    problems: dict[str, str] = {}
    try:
        data = _shared_data(configurations, options, display)
        for number, (value, config) in enumerate(configurations.items(), start=1):
            display.message(f"{sweep.key}={value.text} ({number} of {len(configurations)})")
            folder = options.out / value.folder
            try:
                simulate(config, replace(options, data=data, out=folder, resume=True), display)
            except (ConfigError, OutputError):
                raise
            except FedvoxError as error:
                problems[value.text] = str(error)
                display.message(f"{sweep.key}={value.text} failed: {error}")
            _write(sweep, options.out, problems)
    finally:
        report = _write(sweep, options.out, problems)
    return report, not problems


def _open_folder(sweep: Sweep, options: SimulationOptions) -> None:
    out = options.out
    try:
        if not out.exists() or not any(out.iterdir()):
            out.mkdir(parents=True, exist_ok=True)
            _write(sweep, out, {})
            return
    except OSError as error:
        raise OutputError(f"{out}: cannot be made: {error.strerror or error}; choose another --out") from None
    if not options.resume:
        raise OutputError(f"{out}: exists already; choose another --out, or go on with it by --resume")
    try:
        key = json.loads((out / SWEEP_FILE).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{out}: is not the folder of a sweep; choose another --out") from None
    if key != sweep.key:
        raise ConfigError(f"{out}: is a sweep of {key}, not of {sweep.key}; choose another --out")


def _shared_data(
    configurations: Mapping[SweepValue, FederationConfig], options: SimulationOptions, display: ProgressDisplay
) -> Path | None:
    """The dataset of all runs; phantoms are made once, unless they are what is being changed."""
    first, *others = configurations.values()
    if options.data is None and any(_phantoms(config) != _phantoms(first) for config in others):
        return None
    return find_or_make_data(first, options.data, RunFolder(options.out), display)


def _phantoms(config: FederationConfig) -> object:
    return config.simulation.phantom if config.simulation else None


def _write(sweep: Sweep, out: Path, problems: Mapping[str, str]) -> Path:
    """``sweep.json``, and the report that is drawn from it."""
    values: list[dict[str, Any]] = []
    for value in sweep.values:
        result = read_result(out / value.folder)
        if value.text in problems:
            result |= {"status": "failed", "problem": problems[value.text]}
        values.append({"value": value.text, "folder": value.folder} | result)
    write_atomically(out / SWEEP_FILE, as_json({"key": sweep.key, "runs": values}))
    return write_sweep_report(out)
