"""``python -m server [overrides]``: the same as ``fedmed server``."""

import sys

from fedmed.cli import main

if __name__ == "__main__":
    sys.exit(main(["server", *sys.argv[1:]]))
