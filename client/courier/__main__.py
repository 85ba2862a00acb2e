"""``python -m client.courier``; see ``client.courier.main``."""

from __future__ import annotations

import logging
import os
import sys

from client.courier.main import main

status = main()
logging.shutdown()
sys.stdout.flush()
# Skip the interpreter's shutdown: threads may still be blocked on the network.
os._exit(status)
