"""`python -m secateurs`, the entry point that multi-process launchers call."""

import sys

from secateurs.cli import main

if __name__ == "__main__":
    sys.exit(main())
