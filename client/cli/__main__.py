"""``python -m client.cli``: the same as ``fedvox-client``."""

from client.cli.entry import main

if __name__ == "__main__":
    main()
