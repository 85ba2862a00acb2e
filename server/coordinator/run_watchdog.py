"""The Flower run that carries a federation: submitted, watched, and submitted anew when it dies."""

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
    """The server app fails again and again."""


class FlowerRun:
    """Sees to it that one server app works on the federation until it is over.

    A server app that died, however it did, is replaced by another one in a new Flower run; it goes on from the last
    finished round. One that is alive is left alone, also when SuperLink dies: with SuperLink's database, app and sites
    go on where they were, and stopping a run would cost the round that is under way.

    Parameters
    ----------
    run
        the run folder.
    bundle
        to submit.
    audit
        gets every submission.
    say
        gets what a person should read.
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
        """Looks after the run; to be called about once a second.

        Raises
        ------
        ControlError
            SuperLink does not answer.
        FlowerRunError
            the app fails at once, again and again.
        """
        if self.outcome is not None:
            return
        if not self._cleared:
            # What an earlier server left behind; its app cannot be alive long, for it died with that server.
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
        # An app that was killed while Flower unpacked its bundle leaves half of it, which Flower takes for all.
        shutil.rmtree(self._run / "flwr-home" / "apps", ignore_errors=True)
        self._progress = self._progress_mark()
        self.flower_run = control.submit(self._bundle)
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
                f"the server app ended {self._failures} times without getting further; "
                f"see {self._run / 'logs' / 'app.log'}, then start again"
            )
        self._delay = 0.0 if went_on else next_delay(self._delay, time.monotonic() - self._submitted_at)
        self._submit_at = time.monotonic() + self._delay
        self.flower_run = None
        self._say("the server app ended; another one goes on from the last finished round")

    def _progress_mark(self) -> object:
        try:
            return (self._run / "state.json").read_bytes()
        except OSError:
            return None


def outcome_of(run: Path) -> str | None:
    """The status in a run's summary; None if it has none."""
    try:
        return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
