"""`python -m gpucnn` runs the command line `gpucnn`."""

import sys

from gpucnn.commands import main

if __name__ == "__main__":
    sys.exit(main())
