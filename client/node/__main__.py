"""``python -m client.node STATE_DIR MODEL_DIR``: the process that segments, started by ``fedvox-client listen``."""

from __future__ import annotations

import sys
from pathlib import Path

from client.node.segmenter import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
