"""``python -m client.runner``: the runner, started by ``fedvox-client start`` and ``fedvox-client runner``."""

from __future__ import annotations

import sys

from client.runner.isolation import isolate


def run() -> int:
    """Drop the network, and only then load everything else."""
    isolation = isolate()
    from client.runner.main import main

    return main(isolation)


if __name__ == "__main__":
    sys.exit(run())
