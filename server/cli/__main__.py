"""``python -m server.cli`` is the same as ``fedvox-server``."""

from server.cli.entry import main

if __name__ == "__main__":
    main()
