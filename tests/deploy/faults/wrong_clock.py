"""SuperNode with a clock of its own: ``python -m tests.deploy.faults.wrong_clock SECONDS`` and SuperNode's options.

Only the time that it signs is another one. (Under ``faketime`` Python cannot sleep.)
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta

from flwr.supercore.date import now
from flwr.supernode import node_auth_http_interceptor

from client import supernode


def main() -> None:
    ahead = timedelta(seconds=float(sys.argv.pop(1)))

    def wrong_now() -> datetime:
        return now() + ahead

    node_auth_http_interceptor.now = wrong_now  # type: ignore[attr-defined]
    supernode.main()


if __name__ == "__main__":
    main()
