"""``python -m server.cli``: the same as ``fedvox-server``."""

import sys

from server.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
