"""``python -m client.runner``: the runner's program; ``fedvox-client start`` and ``fedvox-client runner`` start it."""

from __future__ import annotations

import sys

from client.runner.isolation import isolate


def run() -> int:
    """Takes the network away, and only then loads all the rest."""
    isolation = isolate()
    from client.runner.main import main

    return main(isolation)


if __name__ == "__main__":
    sys.exit(run())
