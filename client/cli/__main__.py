"""``python -m client.cli``: the same as ``fedvox-client``."""

import sys

from client.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
