"""`python -m secateurs.cli`, where the console script is not on the path."""

import sys

from secateurs.cli import main

sys.exit(main())
