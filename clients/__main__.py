"""``python -m clients [overrides]``: the same as ``fedmed client``."""

import sys

from fedmed.cli import main

if __name__ == "__main__":
    sys.exit(main(["client", *sys.argv[1:]]))
