"""``python -m client.courier``; see ``client.courier.main``."""

from __future__ import annotations

import logging
import os
import sys

from client.courier.main import main

status = main()
logging.shutdown()
sys.stdout.flush()
# Not through the interpreter's own end: threads may still wait for the network.
os._exit(status)
