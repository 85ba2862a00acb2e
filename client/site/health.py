"""Health check of the processes on a state folder, for containers and for people."""

from __future__ import annotations

import time

from client.state_folder import StateFolder, site_status


def health_problem(folder: StateFolder) -> str:
    """Return what is wrong, in words; empty if nothing is.

    A courier without a connection to the server counts as healthy, and so does a runner without tasks: both wait, and
    a restart would not help.
    """
    status = site_status(folder)
    if not status["running"]:
        return f"nothing runs on {folder.path}"
    for name, process in status["processes"].items():
        if process["pid"] is None:
            return f"{name} is not running (see {folder.logs / (name + '.log')})"
    if status["role"] == "courier":
        return ""
    runner = status["runner"]
    if runner.get("problem"):
        return str(runner["problem"])
    if time.time() > runner.get("sign_by", float("inf")):
        return f"the runner has given no sign of life for {time.time() - runner['time']:.0f} s"
    return ""
