"""The gateway's program with other limits: ``python -m tests.server.gateway.limited JSON --kit ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from common.config.network import parse_listen
from server.gateway.listen import Listen
from server.gateway.quotas import Limits
from server.gateway.serve import GatewayOptions, serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("limits", type=json.loads)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--listen")
    parser.add_argument("--tls-ended-by-proxy", action="store_true")
    given = parser.parse_args()
    listen = Listen(*parse_listen("--listen", given.listen, ""))
    status = serve(GatewayOptions(given.kit, given.run, listen, given.tls_ended_by_proxy), Limits(**given.limits))
    sys.stdout.flush()
    os._exit(status)
