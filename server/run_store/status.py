"""The status of a run, read from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.config.yaml_file import parse_yaml
from common.errors import ConfigError, DamagedFileError
from common.formatting import counted, visible
from server.formatting import format_best, scores_are_noised
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import FEDERATION_FILE, RunFolder
from server.run_store.live_status import NetworkStatus, read_network_status
from server.run_store.locks import is_started


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes
    ----------
    status
        ``finished``, ``stopped``, ``interrupted``, or ``unfinished`` for a run without a summary; ``running`` while a
        process works on it, and ``not running`` for an unfinished run over a network.
    alarms
        What a person should look at, in one sentence each.
    network
        The processes and sites of a run over a network; None for a simulation.
    """

    name: str
    status: str
    rounds_done: int
    rounds_planned: int
    best_round: int | None
    best_mean_dice: float | None
    last_mean_dice: float | None
    sites: dict[str, str]
    seconds: float
    noised: bool = False
    alarms: tuple[str, ...] = ()
    network: NetworkStatus | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the status for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """Return the status as human-readable lines."""
        lines = [
            f"{self.name}: {self.status}, {self.rounds_done} of {counted(self.rounds_planned, 'round')}, "
            f"{self.seconds:.0f} s"
        ]
        if self.best_mean_dice is not None:
            lines.append(format_best(self.best_mean_dice, self.best_round or 0, self.noised))
        lines += [f"ALARM: {text}" for text in self.alarms]
        if self.sites:
            lines.append("last finished round:")
        lines += [f"  {name}: {status}" for name, status in self.sites.items()]
        if self.network is not None and (self.network.running or self.status != "finished"):
            lines += self.network.as_lines()
        return "\n".join(map(visible, lines))


def describe_run(folder: RunFolder) -> RunStatus:
    """Return the status of a run folder; values that do not exist yet are left empty.

    Raises
    ------
    DamagedFileError
        A file that it reads is damaged.
    """
    return as_it_runs(describe_files(folder), folder.path)


def as_it_runs(status: RunStatus, run: Path) -> RunStatus:
    """Return the status of a run's files (``describe_files``) with what its processes do now."""
    network, word = read_network_status(run), status.status
    if network is not None and word == "unfinished":
        word = "running" if network.running else "not running"
    elif network is None and word != "finished" and is_started(run):
        word = "running"
    return replace(status, status=word, network=network)


def describe_files(folder: RunFolder) -> RunStatus:
    """Return the status as the run's finished rounds have it, as ``describe_run`` without its processes."""
    config = _read_mapping(folder.path / "federation.yaml", lambda text: parse_yaml(text, FEDERATION_FILE))
    state = folder.load_state()
    if state is not None:
        folder.check_lines(state)
    # The digest of the others is checked already.
    last = folder.last_round() or {"mean_dice": None, "sites": {}}
    summary = folder.path / SUMMARY_FILE
    status = str(_read_mapping(summary, json.loads)["status"]) if summary.exists() else "unfinished"
    return RunStatus(
        name=config["name"],
        status=status,
        rounds_done=state.round if state else 0,
        rounds_planned=config["rounds"],
        best_round=state.best_round if state else None,
        best_mean_dice=state.best_mean_dice if state else None,
        last_mean_dice=last["mean_dice"],
        sites={
            name: site["status"] + (f" ({site['reason']})" if site["reason"] else "")
            for name, site in last["sites"].items()
        },
        seconds=state.seconds if state else 0.0,
        noised=scores_are_noised(config),
        alarms=tuple(state.alarms.values()) if state else (),
    )


def _read_mapping(file: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    """Read a JSON or YAML file as far as the status needs it: a mapping with the keys that it always has."""
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, ConfigError):
        content = None
    needed = {"name", "status"} if file.name == SUMMARY_FILE else {"name", "rounds"}
    if not isinstance(content, dict) or not needed <= set(content):
        raise DamagedFileError(file, "cannot be read", "resume the run, which checks its files and says what to do")
    return content
