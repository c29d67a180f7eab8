"""`python -m secateurs`, which is what launchers of several processes call."""

import sys

from secateurs.cli import main

if __name__ == "__main__":
    sys.exit(main())
