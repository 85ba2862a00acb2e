"""Submits a federation's Flower run, watches it, and submits a new one when the server app dies."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from common.audit import AuditLog
from common.errors import FedvoxError
from common.system.supervisor import next_delay
from server.coordinator.control_client import SuperLinkControl
from server.run_store.locks import app_holder, kill_app

MOST_FAILURES_IN_A_ROW = 10


class FlowerRunError(FedvoxError):
    """The server app keeps failing."""


class FlowerRun:
    """Keeps one server app working on the federation until it ends.

    A dead server app is replaced in a new Flower run, which resumes after the last finished round. A live one is left
    alone, even when SuperLink dies: app and sites resume from SuperLink's database, whereas stopping the run would lose
    the current round.

    Parameters
    ----------
    run
        The run folder.
    bundle
        The app bundle to submit.
    audit
        Records every submission.
    say
        Called with each message for the operator.
    """

    def __init__(self, run: Path, bundle: bytes, audit: AuditLog, say: Callable[[str], None]) -> None:
        self._run = run
        self._bundle = bundle
        self._audit = audit
        self._say = say
        self._submit_at = 0.0
        self._submitted_at = 0.0
        self._delay = 0.0
        self._failures = 0
        self._progress: object = None
        self._cleared = False
        self.flower_run: int | None = None
        self.submissions = 0

    @property
    def outcome(self) -> str | None:
        """``finished`` or ``stopped``, once the server app has said so."""
        return outcome_of(self._run)

    def tick(self, control: SuperLinkControl) -> None:
        """Check the run, and submit or replace it as needed; call about once a second.

        Raises
        ------
        ControlError
            SuperLink does not answer.
        FlowerRunError
            The app failed repeatedly without progress.
        """
        if self.outcome is not None:
            return
        if not self._cleared:
            # Runs of an earlier server, whose app died with it or is about to, or one whose number did not arrive.
            control.stop_all()
            self._cleared = True
        if self.flower_run is None:
            if time.monotonic() >= self._submit_at:
                self._submit(control)
        elif (self._app_died() or control.is_over(self.flower_run)) and self.outcome is None:
            control.stop(self.flower_run)
            self._failed()

    def _submit(self, control: SuperLinkControl) -> None:
        kill_app(self._run)
        # An app killed while Flower unpacks its bundle leaves a partial copy, which Flower treats as complete.
        shutil.rmtree(self._run / "flwr-home" / "apps", ignore_errors=True)
        self._progress = self._progress_mark()
        self._cleared = False  # A slow SuperLink may make a run after nobody waits for its answer.
        self.flower_run = control.submit(self._bundle)
        self._cleared = True
        self.submissions += 1
        self._submitted_at = time.monotonic()
        self._audit.append("run_submitted", flower_run=str(self.flower_run))

    def _app_died(self) -> bool:
        holder = app_holder(self._run)
        return holder is not None and holder.flower_run == self.flower_run and not holder.alive

    def _failed(self) -> None:
        went_on = self._progress_mark() != self._progress
        self._failures = 1 if went_on else self._failures + 1
        if self._failures >= MOST_FAILURES_IN_A_ROW:
            raise FlowerRunError(
                f"the server app ended {self._failures} times without progress; "
                f"see {self._run / 'logs' / 'app.log'}, then start again"
            )
        self._delay = 0.0 if went_on else next_delay(self._delay, time.monotonic() - self._submitted_at)
        self._submit_at = time.monotonic() + self._delay
        self.flower_run = None
        self._say("the server app ended; a new one resumes after the last finished round")

    def _progress_mark(self) -> object:
        try:
            return (self._run / "state.json").read_bytes()
        except OSError:
            return None


def outcome_of(run: Path) -> str | None:
    """Return the status in a run's summary, or None if there is no summary."""
    try:
        return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
