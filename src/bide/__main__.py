"""`python -m bide` is the `bide` command."""

import sys

from bide.cli import main

if __name__ == "__main__":
    sys.exit(main())
