"""Whether what runs on a state folder does its work: for a container's health check, and for whoever wonders."""

from __future__ import annotations

import time

from client.site_state import StateFolder, read_json, site_status
from common.health import is_serving


def illness(folder: StateFolder) -> str:
    """What is wrong, in words; empty if nothing is.

    A SuperNode without a connection to the server is well, and so is a runner without SuperNode: both wait, and to be
    started again would help neither.
    """
    status = site_status(folder)
    if not status["running"]:
        return f"nothing runs on {folder.path}"
    for name, process in status["processes"].items():
        if process["pid"] is None:
            return f"{name} is not running (see {folder.logs / (name + '.log')})"
    health = read_json(folder.status).get("health", "")
    if health and not is_serving(health):
        return f"SuperNode does not answer at {health}"
    if status["role"] == "supernode":
        return ""
    runner = status["runner"]
    if runner.get("problem"):
        return f"the data cannot be used: {runner['problem']}"
    if runner.get("state") == "refused":
        return "SuperNode refuses the runner: they were given different secrets"
    if time.time() > runner.get("sign_by", float("inf")):
        return f"the runner has given no sign of life since {time.time() - runner['time']:.0f} s"
    return ""
