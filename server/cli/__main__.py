"""``python -m server.cli``: the same as ``fedvox-server``."""

from server.cli.entry import main

if __name__ == "__main__":
    main()
