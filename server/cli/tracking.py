"""The options ``--tracking`` and ``--metrics``, and the command ``fedvox-server track``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.system.cli import add_command, show

if TYPE_CHECKING:
    from server.progress.events import EventSink
    from server.tracking.settings import TrackingSettings

TRACK_EXAMPLES = "runs/first --tracking tracking.yaml", "runs/first runs/second --mlflow http://127.0.0.1:5000"


def add_tracking(command: argparse.ArgumentParser) -> None:
    """Add ``--tracking``."""
    command.add_argument(
        "--tracking", type=Path, metavar="FILE", help="follow the run in MLflow or TensorBoard, as tracking.yaml says"
    )


def add_track_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add ``track``."""
    text = "send runs to MLflow, or write them for TensorBoard, also after their end"
    track = add_command(commands, "track", _track, text, *TRACK_EXAMPLES)
    track.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    add_tracking(track)
    track.add_argument("--mlflow", metavar="URL", help="address of an MLflow server, instead of --tracking")
    track.add_argument("--experiment", metavar="NAME", help="MLflow's experiment (default: the federation's name)")
    track.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files into the run folder")


@contextmanager
def tracked(options: argparse.Namespace, run: Path, display: EventSink) -> Iterator[EventSink]:
    """Follow a run for a block, if ``--tracking`` is given; yields what the block must emit to."""
    if options.tracking is None:
        yield display
        return
    from server.tracking.follow import followed
    from server.tracking.settings import read_tracking

    with followed(run, read_tracking(options.tracking), display) as emit:
        yield emit


@contextmanager
def measured(options: argparse.Namespace, run: Path) -> Iterator[None]:
    """Serve a run's metrics for a block, if ``--metrics`` is given."""
    if options.metrics is None:
        yield
        return
    from common.config.network import parse_metrics
    from common.system.metrics_endpoint import metrics_served
    from server.tracking.prometheus import RunMetrics

    with metrics_served(*parse_metrics(options.metrics), RunMetrics(run).collect):
        yield


def _track(options: argparse.Namespace) -> int:
    from server.tracking.follow import track

    settings = _settings(options)
    for run in options.runs:
        track(run, settings)
        show(f"{run}: sent")
    return 0


def _settings(options: argparse.Namespace) -> TrackingSettings:
    from server.tracking.settings import TrackingSettings, parse_server, read_tracking

    if options.tracking is None:
        server = None if options.mlflow is None else parse_server(options.mlflow, "--mlflow")
        return TrackingSettings(server, options.experiment, options.tensorboard)
    if options.mlflow or options.experiment or options.tensorboard:
        raise ConfigError("--tracking: says where to send; drop --mlflow, --experiment and --tensorboard")
    return read_tracking(options.tracking)
