"""Seconds from ``fedvox-client start`` to a site that is ready for its first task.

``python -m tests.benchmarks.site_start`` starts a server, and a site five times, whose scans have been preprocessed and
checked before. It is ready when SuperNode has spoken with the server and the runner waits for a task. Last line:
``site_start: MEDIAN s``.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.network_federation import Federation, federation, wait_for

STARTS = 5
READY = "ready for tasks"


def start(made: Federation) -> float:
    """Starts the site and ends it again; the seconds until it was ready."""
    before = made.log("east").count(READY) if "east" in made.processes else 0
    began = time.monotonic()
    site = made.start_site("east")
    wait_for(lambda: made.log("east").count(READY) > before, 120, "a site that is ready")
    seconds = time.monotonic() - began
    site.send_signal(signal.SIGTERM)
    site.wait(60)
    return seconds


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as folder, federation(Path(folder), ("east", "north")) as made:
        made.start_server()
        wait_for(made.is_up, 120, "a server")
        first = start(made)
        # The first start also approves and checks the scans.
        times = [start(made) for _ in range(STARTS)]
    print(f"first start {first:.1f} s, later {', '.join(f'{seconds:.1f}' for seconds in times)} s")
    print(f"site_start: {statistics.median(times):.1f} s")


if __name__ == "__main__":
    main()
