"""A node in a burst of studies, killed again and again: does each result arrive once?

``python -m tests.benchmarks.listen_burst`` sends 100 studies with DCMTK to ``fedvox-client listen``. It segments them
with an untrained network and sends one result for each to a destination that counts. Ten times, at random moments, the
node, or every other time the process that segments, gets kill -9. A result is a SOP instance UID. Last line:
``listen_burst: N of 100 results, N lost, N twice``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.listening import burst

STUDIES, KILLS = 100, 10


def main() -> int:
    """Measures and prints."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        outcome = burst(Path(folder), STUDIES, KILLS, seed)
    results, stores = len(outcome.counts), sum(outcome.counts.values())
    status = outcome.status
    print(f"{STUDIES} studies in {outcome.seconds:.0f} s with {KILLS} kills, {stores - results} results sent again")
    print(f"done {status['done']}, waiting {status['waiting']}, set aside {len(status['set_aside'])}")
    double = max(0, results - STUDIES)
    print(f"listen_burst: {results} of {STUDIES} results, {max(0, STUDIES - results)} lost, {double} twice")
    return 0 if results == STUDIES == status["done"] else 1


if __name__ == "__main__":
    sys.exit(main())
