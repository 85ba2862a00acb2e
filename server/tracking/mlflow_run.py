"""One run at an MLflow server.

The server itself is the record of what it has: our run is found by a tag that it is created with, its last complete
round by the metric ``round``, and its files by tags with their SHA-256. So nothing is sent twice, whenever sender or
server were killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import common
from common.config.yaml_file import read_yaml
from common.errors import DamagedFileError
from common.system.state_file import digest_of_file
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import FEDERATION_FILE, PLAN_FILE, REPORT_FILE, RunFolder, RunState
from server.tracking.mlflow_client import MlflowClient, MlflowError
from server.tracking.run_reader import RunReader
from server.tracking.values import Metric, metrics_of, parameters_of

RUN_TAG = "fedvox.run"
SENT_TAG = "fedvox.sha256."
MARK = "round"
"""Metric that follows all others of its round."""
RESULTS = (FEDERATION_FILE, PLAN_FILE, SUMMARY_FILE, REPORT_FILE)
KINDS = ("metrics", "params", "tags")
METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100
"""What MLflow takes at most."""
STATUS = {"finished": "FINISHED", "stopped": "FAILED"}
Item = TypeVar("Item")


@dataclass
class _Stored:
    """What the server has of our run.

    Attributes
    ----------
    run
        Its name for the run.
    artifacts
        Where it stores the run's files.
    last
        The last round of which it has everything; 0 for none.
    parameters
        Names.
    files
        SHA-256 by tag.
    has_parameters
        Whether it has all of them.
    """

    run: str
    artifacts: str
    last: int
    parameters: set[str]
    files: dict[str, str]
    has_parameters: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> _Stored:
        """Take over an answer."""
        info, data = run["info"], run.get("data", {})
        metrics, parameters, tags = ({item["key"]: item for item in data.get(kind, ())} for kind in KINDS)
        return cls(
            run=str(info["run_id"]),
            artifacts=str(info["artifact_uri"]),
            last=int(metrics[MARK]["step"]) if MARK in metrics else 0,
            parameters=set(parameters),
            files={key: str(item["value"]) for key, item in tags.items()},
        )


class MlflowRun:
    """Sends a run to a server; each call of ``send`` sends what the server lacks.

    Parameters
    ----------
    client
        The server.
    path
        The run folder; it may not exist yet.
    experiment
        None is the federation's name.
    """

    name = "mlflow"

    def __init__(self, client: MlflowClient, path: Path, experiment: str | None = None) -> None:
        self._client, self._path, self._experiment = client, path, experiment
        self._folder = RunFolder(path)
        self._reader = RunReader(path)
        self._stored: _Stored | None = None

    def send(self, ended: bool) -> None:
        """Send what the server lacks; nothing before the run has begun.

        Parameters
        ----------
        ended
            Whether the run has ended: its results are sent, and how it ended.

        Raises
        ------
        FedvoxError
            Something could not be sent, or the run folder is damaged.
        """
        try:
            state = self._reader.state()
            if state is None:
                return
            if self._stored is None:
                self._stored = self._open(state, ended)
            self._send_parameters(self._stored)
            self._send_rounds(self._stored)
            if ended:
                self._end(self._stored)
        except Exception:
            # The server is asked anew what it has.
            self._stored, self._reader = None, RunReader(self._path)
            raise

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _open(self, state: RunState, ended: bool) -> _Stored:
        """Return what the server has of our run, which is created if it has nothing."""
        experiment = self._experiment_id()
        wanted = {"experiment_ids": [experiment], "filter": f"tags.`{RUN_TAG}` = '{state.run}'", "max_results": 1}
        found = self._client.call("POST", "runs/search", wanted).get("runs")
        if found:
            stored = _understood(lambda: _Stored.of(found[0]))
            if not ended:
                self._client.call("POST", "runs/update", {"run_id": stored.run, "status": "RUNNING"})
            return stored
        tags = {RUN_TAG: state.run, "fedvox.version": common.__version__, "fedvox.federation": state.digest}
        values = {
            "experiment_id": experiment,
            "run_name": self._path.resolve().name,
            "start_time": _milliseconds(self._reader.started()),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        created = self._client.call("POST", "runs/create", values)
        return _understood(lambda: _Stored.of(created["run"]))

    def _experiment_id(self) -> str:
        name = self._experiment or str(read_yaml(self._path / FEDERATION_FILE)["name"])
        try:
            answer = self._client.call("GET", "experiments/get-by-name", {"experiment_name": name})
        except MlflowError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            answer = {"experiment": self._client.call("POST", "experiments/create", {"name": name})}
        if _understood(lambda: answer["experiment"].get("lifecycle_stage", "active")) != "active":
            raise MlflowError(f"experiment {name} was deleted at the server; restore it, or choose another experiment")
        return _understood(lambda: str(answer["experiment"]["experiment_id"]))

    def _send_parameters(self, stored: _Stored) -> None:
        if stored.has_parameters:
            return
        wanted = parameters_of(self._folder).items()
        missing = [{"key": key, "value": value} for key, value in wanted if key not in stored.parameters]
        for part in _parts(missing, PARAMETERS_PER_CALL):
            self._log(stored, params=part)
        stored.has_parameters = True

    def _send_rounds(self, stored: _Stored) -> None:
        new = [committed for committed in self._reader.new_rounds() if int(committed.line["round"]) > stored.last]
        if not new:
            return
        plan = self._folder.plan()
        metrics = []
        for committed in new:
            number = int(committed.line["round"])
            metrics += [*metrics_of(committed, plan), Metric(MARK, number, number, committed.time)]
        for part in _parts(metrics, METRICS_PER_CALL):
            self._log(stored, metrics=list(map(_as_json, part)))

    def _end(self, stored: _Stored) -> None:
        """Send results, as far as the server takes them, and in any case how the run ended."""
        try:
            self._send_results(stored)
        finally:
            summary = self._summary()
            values: dict[str, Any] = {"run_id": stored.run, "status": STATUS.get(str(summary.get("status")), "KILLED")}
            if "finished" in summary:
                values["end_time"] = _milliseconds(datetime.fromisoformat(summary["finished"]).timestamp())
            self._client.call("POST", "runs/update", values)

    def _summary(self) -> dict[str, Any]:
        file = self._path / SUMMARY_FILE
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DamagedFileError(file, "was changed or cut", "resume the run, which makes it again")
        return found

    def _send_results(self, stored: _Stored) -> None:
        address = urlsplit(stored.artifacts)
        if address.scheme != "mlflow-artifacts":
            raise MlflowError(
                "the server does not store files itself, so model and report are not there; start it with "
                "--serve-artifacts and --artifacts-destination"
            )
        for file in [*map(self._path.joinpath, RESULTS), *sorted((self._path / "model").glob("*"))]:
            name = file.relative_to(self._path).as_posix()
            digest = digest_of_file(file) if file.is_file() else None
            if digest is not None and stored.files.get(SENT_TAG + name) != digest:
                self._client.put_file(f"{address.path.strip('/')}/{name}", file)
                self._log(stored, tags=[{"key": SENT_TAG + name, "value": digest}])
                stored.files[SENT_TAG + name] = digest

    def _log(self, stored: _Stored, **values: Sequence[Mapping[str, Any]]) -> None:
        self._client.call("POST", "runs/log-batch", {"run_id": stored.run, **values})


def _understood(read: Callable[[], Item]) -> Item:
    """Return what is read from an answer."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise MlflowError("the server answers in another form than MLflow does; correct the address") from None


def _as_json(metric: Metric) -> dict[str, Any]:
    time = _milliseconds(metric.time)
    return {"key": metric.name, "value": metric.value, "step": metric.step, "timestamp": time}


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))
